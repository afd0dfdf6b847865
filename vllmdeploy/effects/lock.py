"""Hold the fleet's lock for as long as a change takes, and say so while it lasts."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vllmdeploy.core.command import check
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import Locked, VllmdeployError
from vllmdeploy.tools import lock
from vllmdeploy.tools.access import Access


def this_run(what: str) -> lock.Holder:
    return lock.Holder(
        who=getpass.getuser(),
        machine=socket.gethostname(),
        boot_id=_boot_id(),
        pid=os.getpid(),
        what=what,
        nonce=secrets.token_hex(8),
    )


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


@contextmanager
def held(shell: Shell, access: Access, what: str, stop: Stop) -> Generator[None]:
    """Take the lock or raise Locked; while held, a heartbeat tells others that we live.

    A lock that was broken by somebody else stops this run: two must never work at once.
    """
    holder = this_run(what)
    path = access.layout.lock
    command = access.of(lock.take(path, holder))
    result = shell.run(command)
    if lock.taken_by_another(result):
        raise Locked(describe(shell.host, ask_one(shell, lock.state(path), access)))
    check(shell.host, command, result, doing="taking the lock")
    done = threading.Event()
    beat = access.of(lock.beat(path, holder.nonce))

    def keep_beating() -> None:
        while not done.wait(lock.HEARTBEAT_S):
            try:
                alive = shell.run(beat).ok
            except VllmdeployError:
                continue  # out of reach for now: the steps themselves will say so
            if not alive:
                stop.event.set()
                return

    threading.Thread(target=keep_beating, daemon=True, name="heartbeat").start()
    try:
        yield
    finally:
        done.set()
        shell.run(access.of(lock.release(path, holder.nonce)))


def describe(host: str, state: lock.LockState) -> str:
    who = str(state.holder) if state.holder else "somebody whose record is not readable"
    return (
        f"{host}: locked by {who}, since {state.age_s} s,"
        f" last sign of life {state.silent_s} s ago\n"
        "  -> wait for it, or `vllmdeploy unlock` when that run is dead"
    )


def evidence(state: lock.LockState) -> tuple[bool, str]:
    """Whether the holder is certainly gone, and what says so."""
    holder = state.holder
    if holder and holder.machine == socket.gethostname():
        if holder.boot_id != _boot_id():
            return True, "this machine was restarted since"
        if not Path(f"/proc/{holder.pid}").exists():
            return True, f"no process {holder.pid} runs on this machine any more"
    if state.stale:
        return True, f"no sign of life for {state.silent_s} s (a run gives one every 10 s)"
    return False, f"it gave a sign of life {state.silent_s} s ago"
