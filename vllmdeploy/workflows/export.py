"""The same plan as files, for people who keep their own tooling."""

from __future__ import annotations

import sys
from pathlib import Path

from vllmdeploy.effects.template import render
from vllmdeploy.errors import UsageError

SCRIPTS = ("deploy_vllm.sh", "download_model.sh", "start_service.sh", "check_status.sh")
_MARK = "Written by `vllmdeploy export scripts`"


def export_scripts(folder: Path, *, config_folder: Path, force: bool) -> tuple[Path, ...]:
    """Write the four scripts; a file that somebody else wrote is not replaced."""
    values = {"folder": config_folder.resolve(), "tool": _tool()}
    strangers = [folder / name for name in SCRIPTS if _is_somebody_elses(folder / name)]
    if strangers and not force:
        names = ", ".join(map(str, strangers))
        raise UsageError(f"not written by this command: {names}", hint="--force replaces them")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name in SCRIPTS:
        where = {**values, "folder": values["folder"] if name == SCRIPTS[0] else folder.resolve()}
        written.append(_write(folder / name, render(f"scripts/{name}.j2", where)))
    return tuple(written)


def _tool() -> str:
    """The program that runs now, wherever it is installed."""
    beside = Path(sys.executable).with_name("vllmdeploy")
    return str(beside) if beside.exists() else "vllmdeploy"


def _is_somebody_elses(path: Path) -> bool:
    if not path.exists():
        return False
    return _MARK not in path.read_text("utf-8", errors="replace")[:400]


def _write(path: Path, text: str) -> Path:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, "utf-8")
    new.chmod(0o755)
    return new.replace(path)
