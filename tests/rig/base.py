"""The image that rig hosts run: a Debian base, made once and kept as an engine's folder."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.rig.claim import WORKTREE
from tests.rig.programs import RigError, run

IMAGE = "vllmdeploy-rig:base"
ENGINE = WORKTREE / ".venv-engine"
MODELS = WORKTREE / ".cache/models"
# python3 brings the libraries that any interpreter mounted into the image needs.
INCLUDED = ("python3", "libnuma1", "libgomp1")


def release(text: str) -> str:
    """The code name in /etc/os-release; containers must have this machine's C library."""
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', text, re.MULTILINE)
    if not found:
        raise RigError("/etc/os-release has no VERSION_CODENAME: not Debian or Ubuntu?")
    return found.group(1)


def codename() -> str:
    return release(Path("/etc/os-release").read_text())


def mirror(sources: str, codename: str) -> str:
    """Where this machine's own apt gets that release from: deb822 stanzas or one-line entries."""
    for stanza in re.split(r"\n\s*\n", sources):
        fields = dict(re.findall(r"^(\w[\w-]*):\s*(.+)$", stanza, re.MULTILINE))
        if codename in fields.get("Suites", "").split():
            return str(fields["URIs"].split()[0])
    entry = re.search(rf"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+{codename}\s", sources, re.MULTILINE)
    if not entry:
        raise RigError(f"apt has no source for {codename}")
    return entry.group(1)


def apt_sources() -> str:
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return "\n\n".join(
        path.read_text()
        for path in files
        if path.suffix in {".list", ".sources"} and path.is_file()
    )


def golden_engine(cache: Path) -> Path:
    """Where the folder of an engine that has the image is, or will be: named after its contents."""
    engine = run(("dockerd", "--version")).stdout
    recipe = " ".join((codename(), platform.machine(), *INCLUDED, engine))
    return cache / f"rig-engine-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def debootstrap(target: Path) -> None:
    proxy = run(("apt-config", "shell", "proxy", "Acquire::http::Proxy")).stdout.strip()
    environment = dict(os.environ, **({"http_proxy": proxy[7:-1]} if proxy else {}))
    run(
        (
            *("debootstrap", "--variant=minbase", f"--include={','.join(INCLUDED)}"),
            *(codename(), str(target), mirror(apt_sources(), codename())),
        ),
        limit_s=600,
        env=environment,
    )
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(target / waste, ignore_errors=True)


def copy_engine(golden: Path, target: Path) -> None:
    """Layers are never written to, so hosts share their files; records are each engine's own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run(("cp", "--archive", "--link", f"{golden}/.", str(target)))
    for folder, folders, files in os.walk(target):
        if Path(folder).name in {"diff", "fs"}:
            folders.clear()
            continue
        for name in files:
            shared = Path(folder, name)
            if shared.is_symlink() or not shared.is_file():
                continue
            own = shared.with_name(f"{name}.own")
            shutil.copy2(shared, own)
            own.replace(shared)


def tar_into(folder: Path, argv: tuple[str, ...]) -> None:
    """Pipe a folder as a tar into a program, such as `docker import -`."""
    with subprocess.Popen(("tar", "-C", str(folder), "-c", "."), stdout=subprocess.PIPE) as tar:
        done = subprocess.run(argv, stdin=tar.stdout, capture_output=True, text=True, check=False)
    if tar.returncode or done.returncode:
        raise RigError(f"tar | {' '.join(argv)}: {done.stderr.strip()}")


def shown_folders() -> tuple[str, ...]:
    """What hosts and containers see of this machine, read-only: Python, its packages, and what
    scripts/engine.sh made, where it has run."""
    engine = (base_of(ENGINE), str(ENGINE), str(MODELS)) if ENGINE.exists() else ()
    folders = (sys.base_prefix, sys.prefix, *engine)
    return tuple(dict.fromkeys(folder for folder in folders if folder != "/usr"))


def base_of(environment: Path) -> str:
    """Where the interpreter of a virtual environment was installed."""
    found = re.search(
        r"^home *= *(.+)/bin$", (environment / "pyvenv.cfg").read_text(), re.MULTILINE
    )
    if not found:
        raise RigError(f"{environment}/pyvenv.cfg names no home")
    return found.group(1)


def docker_args(environment: str = sys.prefix) -> str:
    """EXTRA_DOCKER_ARGS under which the plain base has what is in a virtual environment."""
    mounts = " ".join(f"-v {folder}:{folder}:ro" for folder in shown_folders())
    path = f"{environment}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return f"{mounts} -e PATH={path}"
