"""Hold the fleet's lock for as long as a change takes, and say so while it lasts."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllmdeploy.core.command import check
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import Locked, VllmdeployError
from vllmdeploy.tools import lock
from vllmdeploy.tools.access import Access

LOST = "the lock was taken away"
_TRIES = 5


def this_run(what: str) -> lock.Holder:
    return lock.Holder(
        who=user(),
        machine=socket.gethostname(),
        boot_id=_boot_id(),
        pid=os.getpid(),
        what=what,
        nonce=secrets.token_hex(8),
    )


def user() -> str:
    """A container may run us under a number that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


@contextmanager
def held(
    shell: Shell, access: Access, what: str, stop: Stop, *, every_s: float = lock.HEARTBEAT_S
) -> Generator[None]:
    """Take the lock or raise Locked; while held, a heartbeat tells others that we live.

    A lock that was broken by somebody else stops this run: two must never work at once.
    """
    holder = this_run(what)
    path = access.layout.lock
    _take(shell, access, holder)
    done = threading.Event()
    beat = access.of(lock.beat(path, holder.nonce))

    def keep_beating() -> None:
        while not done.wait(every_s):
            try:
                lost = lock.lost(shell.run(beat))
            except VllmdeployError:
                continue  # out of reach for now: the steps themselves will say so
            if lost:
                stop.because = LOST
                stop.event.set()
                return

    threading.Thread(target=keep_beating, daemon=True, name="heartbeat").start()
    release = access.of(lock.release(path, holder.nonce))
    try:
        yield
    except BaseException:
        done.set()
        # What ended the run is what has to be told; a lock left behind goes stale in a minute.
        with suppress(VllmdeployError):
            shell.run(release)
        raise
    done.set()
    check(shell.host, release, shell.run(release), doing="giving the lock back")


def _take(shell: Shell, access: Access, holder: lock.Holder) -> None:
    path = access.layout.lock
    command = access.of(lock.take(path, holder))
    for _ in range(_TRIES):
        result = shell.run(command)
        if not lock.taken_by_another(result):
            check(shell.host, command, result, doing="taking the lock")
            return
        state = ask_one(shell, lock.state(path), access)
        if state.held:
            raise locked_by(shell.host, state)
    raise Locked(f"{shell.host}: {path} changes hands all the time", hint="try again")


def locked_by(host: str, state: lock.LockState) -> Locked:
    who = str(state.holder) if state.holder else "somebody whose record is not readable"
    return Locked(
        f"{host}: locked by {who}, since {state.age_s} s, last sign of life {state.silent_s} s ago",
        hint="wait for it, or `vllmdeploy unlock` when that run is dead",
    )


def _lives(pid: int) -> bool:
    """Without /proc, which macOS has not."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True


def evidence(state: lock.LockState) -> tuple[bool, str]:
    """Whether the holder is certainly gone, and what says so."""
    holder = state.holder
    if holder and holder.machine == socket.gethostname():
        if holder.boot_id != _boot_id():
            return True, "this machine was restarted since"
        if not _lives(holder.pid):
            return True, f"no process {holder.pid} runs on this machine any more"
    if state.stale:
        return True, f"no sign of life for {state.silent_s} s (a run gives one every 10 s)"
    return False, f"it gave a sign of life {state.silent_s} s ago"
