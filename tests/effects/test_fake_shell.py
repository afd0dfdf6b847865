"""The fake host that all other tests lean on."""

from __future__ import annotations

import pytest

from tests.fakes import FakeFleet, FakeShell, on
from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import HostUnreachable

RUN = Command(("docker", "run", "--name", "x y"))


def test_rules_answer_by_first_words_and_host_and_history_reads_as_a_transcript() -> None:
    fleet = FakeFleet(
        on("docker container ls", stdout="[]\n"),
        on("docker run", exit_code=125, stderr="no space left", host="a"),
        on("docker run"),
    )
    assert fleet["a"].run(RUN) == Result(125, "", "no space left")
    assert fleet["b"].run(RUN) == Result(0)
    assert fleet["b"].run(Command(("docker", "container", "ls", "--all"))).stdout == "[]\n"
    assert fleet.history == [
        "a: docker run --name 'x y'",
        "b: docker run --name 'x y'",
        "b: docker container ls --all",
    ]


def test_an_unexpected_command_fails_the_test_past_any_except_exception() -> None:
    shell = FakeShell(on("docker run"))
    with pytest.raises(pytest.fail.Exception, match="unexpected command: a: docker rm x"):
        shell.run(Command(("docker", "rm", "x")))


def test_words_are_whole_words() -> None:
    with pytest.raises(pytest.fail.Exception):
        FakeShell(on("docker run")).run(Command(("docker", "runner")))


def test_sudo_is_looked_through_but_seen_in_the_history() -> None:
    shell = FakeShell(on("docker run"))
    assert shell.run(RUN.elevated()).ok
    assert shell.history == ["a: sudo -n -- docker run --name 'x y'"]


def test_a_rule_used_up_steps_aside_for_the_next() -> None:
    shell = FakeShell(on("test -e f", exit_code=1, times=1), on("test -e f"))
    statuses = [shell.run(Command(("test", "-e", "f"))).status for _ in range(3)]
    assert statuses == [1, 0, 0]


def test_a_host_that_does_not_answer_raises_and_a_computed_answer_sees_stdin() -> None:
    gone = HostUnreachable("a", "no route")
    with pytest.raises(HostUnreachable, match="no route"):
        FakeShell(on("true", raises=gone)).run(Command(("true",)))
    echo = FakeShell(on("cat", answer=lambda command: Result(0, (command.stdin or b"").decode())))
    assert echo.run(Command(("cat",), stdin=b"hello")).stdout == "hello"


def test_lines_stream_and_the_fake_is_a_shell() -> None:
    shell: Shell = FakeShell(on("seq", stdout="1\n2\n", stderr="done\n"))
    seen: list[str] = []
    shell.run(Command(("seq", "2")), on_line=seen.append)
    assert seen == ["1", "2", "done"]
