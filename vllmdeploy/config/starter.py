"""Makes the first config.env and worker_nodes.txt of a fleet, and writes them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from vllmdeploy.config.example import config_env
from vllmdeploy.config.nodes import MEANINGS
from vllmdeploy.config.settings import starting
from vllmdeploy.config.values import fault
from vllmdeploy.errors import SettingsError, UsageError

_WORKER = "command line: worker"
_NODES_HEADER = (
    "# The other hosts of the fleet, one a line: [user@]host[:port], then, where needed,\n"
    + "".join(f"#   {example:<19} {meaning}\n" for example, meaning in MEANINGS.items())
)


def starter_files(
    answers: Mapping[str, str], workers: Sequence[str], *, accelerators: Collection[str] = ()
) -> tuple[str, str]:
    """The texts of config.env and worker_nodes.txt; all problems of the answers at once."""
    unfit = [
        f"{_WORKER}:{number}: {problem}"
        for number, problem in enumerate(map(fault, workers), start=1)
        if problem
    ]
    if unfit:
        raise SettingsError(unfit)
    lines = "".join(f"{worker}\n" for worker in workers)
    starting(answers, nodes_text=lines, nodes_name=_WORKER, accelerators=accelerators)
    chosen = {key: text for key, text in answers.items() if text}
    return config_env(chosen), _NODES_HEADER + lines


def refuse_existing(paths: Sequence[Path]) -> None:
    # A dangling link is in the way too, so lexists.
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there:
        verb = "is" if len(there) == 1 else "are"
        raise UsageError(
            f"{' and '.join(there)} {verb} already there: nothing written",
            hint="edit by hand, or replace with --force",
        )


def write_files(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot write it: {error.strerror}") from error
