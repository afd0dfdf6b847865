"""The warden as PID 1 of a process namespace, as it is in a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.node.wardens import Node
from tests.rig.programs import until
from vllmdeploy.node import processes

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
ORPHANS = """
import os, time
for seconds in (0, 0, 0, 1000):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(seconds)
        os._exit(0)
print("forked", flush=True)
time.sleep(1000)
"""


def can_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    done = subprocess.run((*UNSHARE, "true"), capture_output=True, check=False, timeout=30)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not can_unshare(), reason="may not make a process namespace here")


def start(node: Node, *child: str) -> int:
    """Its pid as seen from outside."""
    argv = (*UNSHARE, *node.argv("--role", "instance", "--back-off", "0.1", child=child))
    with (node.folder / "node.out").open("w") as out:
        node.program = subprocess.Popen(argv, stdout=out, stderr=out, text=True)
    status = node.reaches(lambda status: status["state"] == "running")
    assert status["pid"] == 1
    (pid,) = below(node.program.pid)
    return pid


def below(parent: int) -> list[int]:
    """Direct children, the dead that nobody has buried included."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        known = processes.process(int(entry.name)) if entry.name.isdigit() else None
        if known is not None and known.parent == parent:
            found.append(known.pid)
    return found


def test_orphans_are_adopted_and_buried_and_sigterm_ends_with_exit_0(node: Node) -> None:
    pid = start(node, "python3", "-c", ORPHANS)
    until("only the child and the living orphan", lambda: len(below(pid)) == 2)
    os.kill(pid, signal.SIGTERM)
    assert node.program is not None
    assert node.program.wait(30) == 0
    assert "[warden] stopped" in node.said


def test_what_a_dead_child_left_in_the_namespace_ends_before_the_next_start(node: Node) -> None:
    pid = start(node, "python3", "-c", ORPHANS)
    until("only the child and the living orphan", lambda: len(below(pid)) == 2)
    before = below(pid)
    child = next(pid for pid in before if pid == leader(pid))
    os.kill(child, signal.SIGKILL)
    node.reaches(lambda status: status["engines"]["node"]["restarts"] == 1)
    until("two again", lambda: len(below(pid)) == 2)
    assert not set(before) & set(below(pid))
    assert node.ask("stop") == {"done": True}
    assert node.program is not None
    assert node.program.wait(30) == 0


def leader(pid: int) -> int:
    command = Path(f"/proc/{pid}/stat").read_text()
    found = processes.parse_stat(command)
    return found.session if found is not None else 0
