"""Processes through /proc: who belongs to a child, starting one, ending all of it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RUN_MARK = "VLLMDEPLOY_WARDEN"
CHILD_MARK = "VLLMDEPLOY_CHILD"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    session: int
    state: str
    started: int  # clock ticks since boot: with the pid it names one process for good

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def parse_stat(text: str) -> Process | None:
    """One /proc/PID/stat; the program's name in it may hold spaces and brackets."""
    pid, _, rest = text.partition(" (")
    fields = rest[rest.rfind(")") + 1 :].split()
    if not pid.isdigit() or len(fields) < 20:
        return None
    return Process(int(pid), int(fields[1]), int(fields[3]), fields[0], int(fields[19]))


def process(pid: int) -> Process | None:
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text("utf-8", "replace"))
    except OSError:  # it ended in the meantime
        return None


def everything() -> dict[int, Process]:
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {found.pid: found for found in map(process, pids) if found and not found.dead}


def boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def mark(pid: int, name: str) -> str | None:
    """The value of one variable that the process was started with; None where it cannot be read."""
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:  # ended, or another user's
        return None
    prefix = os.fsencode(name) + b"="
    values = (part[len(prefix) :] for part in environ.split(b"\0") if part.startswith(prefix))
    found = next(values, None)
    return None if found is None else os.fsdecode(found)


def adopt_orphans() -> bool:
    """Have double-forked descendants handed to this process, as PID 1 has by nature."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _load_libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:  # a static interpreter
        return None


_LIBC = _load_libc()


def _prctl(option: int, value: int) -> bool:
    return _LIBC is not None and _LIBC.prctl(option, value, 0, 0, 0) == 0


def _die_with_the_warden() -> None:
    # Runs between fork and exec: a child must not outlive a supervisor that was killed.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def spawn(argv: tuple[str, ...], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own, output and errors in one pipe."""
    return subprocess.Popen(
        argv,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_the_warden,  # the warden has no threads that could hold a lock
    )


def members(
    table: Mapping[int, Process],
    *,
    warden: int,
    leader: int,
    others: Iterable[int],
    claims: Callable[[int], bool],
) -> tuple[int, ...]:
    """Who belongs to the child that `leader` led: below it, in its session, or an orphan it claims.

    Only the warden's own descendants are looked at, so that a shell somebody opened in the
    container, or another warden's children, are never touched.
    """
    others = frozenset(others)
    return tuple(
        found.pid
        for found in table.values()
        if (top := _top(table, found.pid, warden)) is not None
        and top not in others
        and found.session not in others
        and (leader in (top, found.session) or claims(found.pid))
    )


def _top(table: Mapping[int, Process], pid: int, warden: int) -> int | None:
    """The ancestor that is a direct child of the warden; None for a stranger."""
    seen: set[int] = set()
    while pid not in seen:
        seen.add(pid)
        found = table.get(pid)
        if found is None:
            return None
        if found.parent == warden:
            return pid
        pid = found.parent
    return None


def leftovers(table: Mapping[int, Process], run: str) -> tuple[int, ...]:
    """What an earlier warden of this run folder left: marked processes and their sessions."""
    marked = {pid for pid in table if pid != os.getpid() and mark(pid, RUN_MARK) == run}
    sessions = {table[pid].session for pid in marked}
    return tuple(pid for pid, found in table.items() if pid in marked or found.session in sessions)


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
