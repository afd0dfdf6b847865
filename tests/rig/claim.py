"""Which rig is whose: numbers, the locks that living rigs hold, and what dead ones left behind."""

from __future__ import annotations

import fcntl
import shutil
import zlib
from pathlib import Path
from typing import TextIO

from tests.rig import network
from tests.rig.programs import RigError, run

WORKTREE = Path(__file__).resolve().parents[2]
LOCKS = Path("/run/lock")
NUMBERS = range(20, 220)


def folder(number: int) -> Path:
    return WORKTREE / ".rig" / str(number)


def cgroup(number: int) -> str:
    return f"vllmdeploy-rig-{number}"


def claim() -> tuple[int, TextIO]:
    """A number that no rig has, living or kept, and its lock: two suites can run at once."""
    _sweep_dead()
    preferred = zlib.crc32(str(WORKTREE).encode())
    for step in range(len(NUMBERS)):
        number = NUMBERS[(preferred + step) % len(NUMBERS)]
        lock = None if network.namespaces(number) else _lock(number)
        if lock is not None:
            lock.truncate(0)
            lock.write(str(WORKTREE))
            lock.flush()
            sweep(number)
            return number, lock
    raise RigError(f"{len(NUMBERS)} rigs are on this machine already")


def sweep(number: int) -> None:
    """Take away whatever carries this number."""
    for name in network.namespaces(number):
        network.remove(name)
    if Path(f"/sys/class/net/vr{number}").exists():
        run(("ip", "link", "delete", f"vr{number}"))
    for group in Path("/sys/fs/cgroup").glob(f"**/{cgroup(number)}"):
        for inner in sorted((group, *group.rglob("*")), reverse=True):
            if inner.is_dir():
                inner.rmdir()
    if folder(number).exists():
        shutil.rmtree(folder(number))


def _lock(number: int) -> TextIO | None:
    """This number's lock, which says whose it is; None while a living rig holds it."""
    LOCKS.mkdir(parents=True, exist_ok=True)  # a small container has an empty /run
    lock = (LOCKS / f"vllmdeploy-rig-{number}").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _sweep_dead() -> None:
    """Take away what killed or kept rigs of this worktree left: a lock ends with its process."""
    for number in NUMBERS:
        lock = _lock(number) if network.namespaces(number) else None
        if lock is None:
            continue
        with lock:
            lock.seek(0)
            if lock.read() == str(WORKTREE):
                sweep(number)
