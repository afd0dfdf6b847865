"""Holding the lock while something is done, with a real shell in a folder of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.fakes import FakeShell, on
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.layout import Layout
from vllmdeploy.effects import lock as holding
from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.effects.shell import OnLine
from vllmdeploy.errors import CommandFailed, HostUnreachable, Locked
from vllmdeploy.tools import lock
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.lock import Holder, LockState


def access(folder: Path) -> Access:
    return Access(Layout(str(folder / "state")), "root", os.getuid(), False, False)


def test_a_lock_is_there_while_it_is_held_and_gone_afterwards(tmp_path: Path) -> None:
    shell, way = LocalShell("gpu-01"), access(tmp_path)
    with holding.held(shell, way, "up", Stop.new()):
        assert (tmp_path / "state" / "lock" / "holder").exists()
    assert list((tmp_path / "state").iterdir()) == []


def test_a_second_run_is_told_who_is_there(tmp_path: Path) -> None:
    shell, way = LocalShell("gpu-01"), access(tmp_path)
    with (
        holding.held(shell, way, "up", Stop.new()),
        pytest.raises(Locked) as caught,
        holding.held(shell, way, "down", Stop.new()),
    ):
        pytest.fail("two at once")
    text = str(caught.value)
    assert text.startswith(f"gpu-01: locked by {holding.user()}@{socket.gethostname()} (pid ")
    assert f"pid {os.getpid()}), doing `up`, since " in text
    assert text.endswith("\n  -> wait for it, or `vllmdeploy unlock` when that run is dead")


def race(way: Access) -> list[str]:
    """Two takers at the same moment; who won. Nobody leaves before both have tried."""
    shell, won = LocalShell("gpu-01"), list[str]()
    start, ended = threading.Barrier(2), threading.Barrier(2)

    def take(name: str) -> None:
        start.wait()
        try:
            with holding.held(shell, way, name, Stop.new()):
                won.append(name)
                ended.wait()
        except Locked:
            ended.wait()

    takers = [threading.Thread(target=take, args=(name,)) for name in ("up", "down")]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    return won


def test_of_two_takers_exactly_one_gets_it_every_time(tmp_path: Path) -> None:
    races = [race(access(tmp_path / str(number))) for number in range(50)]
    assert [len(won) for won in races] == [1] * 50


def test_many_that_come_and_go_never_meet(tmp_path: Path) -> None:
    """Takers that find it held try again, so taking and giving back meet at every moment."""
    shell, way = LocalShell("gpu-01"), access(tmp_path)
    inside, seen, errors = [0], [0], list[BaseException]()

    def work() -> None:
        done = 0
        while done < 8 and not errors:
            try:
                with holding.held(shell, way, "up", Stop.new()):
                    inside[0] += 1
                    seen[0] = max(seen[0], inside[0])
                    inside[0] -= 1
                done += 1
            except Locked:
                continue
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == []
    assert seen == [1]


class Watched:
    """A real shell that tells when a heartbeat has been answered."""

    host = "gpu-01"

    def __init__(self, trouble: Result | HostUnreachable | None = None) -> None:
        self._inner = LocalShell(self.host)
        self._trouble = trouble
        self.beats = threading.Semaphore(0)

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        text = command.argv[2]
        if "heartbeat" not in text or "mkdir" in text:
            return self._inner.run(command, on_line=on_line)
        try:
            if isinstance(self._trouble, HostUnreachable):
                raise self._trouble
            return self._trouble or self._inner.run(command)
        finally:
            self.beats.release()

    def close(self) -> None:
        self._inner.close()


def test_a_lock_that_is_broken_stops_the_run_and_leaves_the_others(tmp_path: Path) -> None:
    shell, way, stop = Watched(), access(tmp_path), Stop.new()
    with holding.held(shell, way, "up", stop, every_s=0.001):
        shell.run(lock.break_(way.layout.lock))
        other = holding.this_run("down")
        assert shell.run(lock.take(way.layout.lock, other)).ok
        assert stop.event.wait(30)
    assert stop.because == "the lock was taken away"
    state = lock.state(way.layout.lock)
    assert state.parse(shell.run(state.command)).holder == other


@pytest.mark.parametrize(
    "trouble",
    [Result(124, timed_out=True), Result(1, "", "disk full"), HostUnreachable("gpu-01", "gone")],
)
def test_a_heartbeat_that_fails_is_no_lost_lock(
    tmp_path: Path, trouble: Result | HostUnreachable
) -> None:
    shell, stop = Watched(trouble), Stop.new()
    with holding.held(shell, access(tmp_path), "up", stop, every_s=0.001):
        for _ in range(3):
            assert shell.beats.acquire(timeout=30)
    assert not stop.event.is_set()


def test_what_ended_the_run_is_told_even_if_the_head_is_gone() -> None:
    gone = HostUnreachable("a", "gone")
    shell = FakeShell(on("sh", containing="mkdir"), on("sh", raises=gone))
    with (
        pytest.raises(KeyboardInterrupt),
        holding.held(shell, access(Path("/x")), "up", Stop.new()),
    ):
        raise KeyboardInterrupt


def test_a_lock_that_cannot_be_given_back_is_said() -> None:
    shell = FakeShell(
        on("sh", containing="mkdir"), on("sh", containing="rm -rf", exit_code=1, stderr="read-only")
    )
    with (
        pytest.raises(CommandFailed, match="giving the lock back"),
        holding.held(shell, access(Path("/x")), "up", Stop.new()),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_no_lock() -> None:
    shell = FakeShell(on("sh", exit_code=1, stderr="mkdir: Permission denied"))
    with (
        pytest.raises(CommandFailed) as caught,
        holding.held(shell, access(Path("/x")), "up", Stop.new()),
    ):
        pytest.fail("not held")
    assert str(caught.value).startswith("a: taking the lock: exit 1: ")
    assert "mkdir: Permission denied" in str(caught.value)


def free(command: Command) -> Result:
    """An answer to `ask` that says that nobody has the lock."""
    mark = command.argv[-1]
    return Result(0, f"{mark} 0 begin\nfree\n\n{mark} 0 errors 0\n\n{mark} 0 end\n")


def test_a_lock_that_changes_hands_all_the_time_is_given_up() -> None:
    shell = FakeShell(
        on("sh", containing="mkdir", exit_code=75), on("sh", containing="begin", answer=free)
    )
    with (
        pytest.raises(Locked, match="changes hands all the time"),
        holding.held(shell, access(Path("/x")), "up", Stop.new()),
    ):
        pytest.fail("not held")
    assert len(shell.history) == 10


def test_an_unreadable_record_is_said() -> None:
    error = holding.locked_by("a", LockState(held=True, age_s=3, silent_s=2))
    assert error.message == (
        "a: locked by somebody whose record is not readable, since 3 s, last sign of life 2 s ago"
    )


def seen(*, silent_s: int, **changes: object) -> LockState:
    mine = holding.this_run("up")
    values = {
        "who": mine.who,
        "machine": mine.machine,
        "boot_id": mine.boot_id,
        "pid": mine.pid,
        "what": "up",
        "nonce": "a",
        **changes,
    }
    return LockState(held=True, holder=Holder(**values), silent_s=silent_s)  # type: ignore[arg-type]  # a table of changes


def ended_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("state", "gone", "why"),
    [
        (seen(silent_s=3), False, "it gave a sign of life 3 s ago"),
        (seen(silent_s=3, machine="other", pid=1), False, "it gave a sign of life 3 s ago"),
        (seen(silent_s=3, boot_id="another"), True, "this machine was restarted since"),
        (seen(silent_s=3, pid=0), True, "no process 0 runs on this machine any more"),
        (seen(silent_s=3, pid=-1), True, "no process -1 runs on this machine any more"),
        (seen(silent_s=3, pid=10**30), True, f"no process {10**30} runs on this machine any more"),
        (
            seen(silent_s=61, machine="other"),
            True,
            "no sign of life for 61 s (a run gives one every 10 s)",
        ),
        (
            LockState(held=True, silent_s=61),
            True,
            "no sign of life for 61 s (a run gives one every 10 s)",
        ),
        (LockState(held=True, silent_s=60), False, "it gave a sign of life 60 s ago"),
        (seen(silent_s=-100), False, "it gave a sign of life -100 s ago"),
    ],
)
def test_only_evidence_says_that_a_holder_is_gone(state: LockState, gone: bool, why: str) -> None:
    assert holding.evidence(state) == (gone, why)


def test_a_process_that_has_ended_is_evidence() -> None:
    pid = ended_pid()
    assert holding.evidence(seen(silent_s=3, pid=pid)) == (
        True,
        f"no process {pid} runs on this machine any more",
    )


def test_a_user_without_a_name_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 98_765_432)
    assert holding.user() == "uid 98765432"
