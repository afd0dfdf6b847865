"""Runs the programs that build the rig, and waits for what they start."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Found = TypeVar("Found")


class RigError(Exception):
    """The rig itself could not do its part: not a finding about the code under test."""


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    limit_s: float = 120,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end. With `check`, a failure carries the program's own words."""
    try:
        done = subprocess.run(
            argv,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=limit_s,
            env=env,
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"").decode(errors="replace").strip()
        raise RigError(f"no end within {limit_s:g} s: {' '.join(argv)}\n{said}") from late
    result = subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )
    if check and result.returncode != 0:
        words = (result.stdout + result.stderr).strip()
        raise RigError(f"exit {result.returncode}: {' '.join(argv)}\n{words}")
    return result


def until(
    what: str, probe: Callable[[], Found | None], *, limit_s: float = 30, every_s: float = 0.05
) -> Found:
    """The first answer of `probe` that is not None or False; else an error naming `what`."""
    end = time.monotonic() + limit_s
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        if time.monotonic() > end:
            raise RigError(f"not within {limit_s:g} s: {what}")
        time.sleep(every_s)
