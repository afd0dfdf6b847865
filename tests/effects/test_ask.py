"""Many questions in one round trip: on the real shell, and with answers that were cut."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeShell, on
from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.layout import Layout
from vllmdeploy.effects.ask import ask, ask_access, ask_one, split
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.errors import CommandFailed, CommandTimedOut
from vllmdeploy.tools.access import Access

HERE = LocalShell("here")
WITH_SUDO = Access(Layout("/s"), "u", 1000, sudo_docker=True, sudo_files=True)


def fact(text: str, *arguments: str, limit_s: float = 20, root: bool = False) -> Fact[Result]:
    command = script(text, *arguments, root=root).within(limit_s)
    return Fact(name=text, command=command, parse=lambda result: result)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("echo a", Result(0, "a\n")),
        ("printf a", Result(0, "a")),
        ("printf 'a\\n\\n'", Result(0, "a\n\n")),
        ("true", Result(0)),
        ("echo out; echo err >&2; exit 3", Result(3, "out\n", "err\n")),
        ("printf err >&2", Result(0, "", "err")),
        ("printf '\\377\\000x\\n'", Result(0, "\ufffd\0x\n")),
        ("printf '@@ begin\\n@@ errors 0\\n'", Result(0, "@@ begin\n@@ errors 0\n")),
        ("no-such-program-here 2>/dev/null", Result(127)),
        ("cat", Result(0)),
    ],
)
def test_a_question_gets_exactly_its_own_answer(text: str, result: Result) -> None:
    assert ask(HERE, (fact("echo before"), fact(text), fact("echo after"))) == [
        Result(0, "before\n"),
        result,
        Result(0, "after\n"),
    ]


def test_a_question_that_was_killed_counts_as_out_of_time() -> None:
    killed, other = ask(HERE, (fact("kill -9 $$"), fact("echo x")))
    assert (killed.status, killed.timed_out, other.stdout) == (137, True, "x\n")


def test_arguments_arrive_as_they_are() -> None:
    hostile = "a b'\"; $(id) `id`\n\\ * é 日本"
    assert ask_one(HERE, fact('printf %s "$1"', hostile)).stdout == hostile


def test_a_question_that_hangs_is_named_and_the_others_are_answered() -> None:
    hanging, other = ask(HERE, (fact("echo half; exec sleep 60", limit_s=0.2), fact("echo x")))
    assert (hanging.timed_out, hanging.stdout) == (True, "half\n")
    assert other == Result(0, "x\n")


def test_a_program_that_has_hung_is_not_asked_again(tmp_path: Path) -> None:
    def of_docker(text: str, limit_s: float) -> Fact[Result]:
        return replace(fact(text, limit_s=limit_s), program="docker")

    ran = tmp_path / "ran"
    facts = (of_docker("exec sleep 60", 0.2), of_docker(f"touch {ran}", 20), fact("echo x"))
    hanging, other, last = ask(HERE, facts)
    assert (hanging.timed_out, other.timed_out, last) == (True, True, Result(0, "x\n"))
    assert not ran.exists()


def test_a_program_that_cannot_be_used_is_asked_once(tmp_path: Path) -> None:
    def of_docker(text: str, *, gate: bool = False) -> Fact[Result]:
        return replace(fact(text), program="docker", gate=gate)

    ran = tmp_path / "ran"
    before = of_docker("exit 3")
    gate = of_docker("echo no daemon >&2; exit 1", gate=True)
    answers = ask(HERE, (before, gate, of_docker(f"touch {ran}"), fact("echo x")))
    assert answers == [Result(3), Result(1, "", "no daemon\n"), Result(1), Result(0, "x\n")]
    assert not ran.exists()


def test_a_gate_that_opens_lets_everything_through() -> None:
    gate = replace(fact("echo 27"), program="docker", gate=True)
    later = replace(fact("echo ps"), program="docker")
    assert ask(HERE, (gate, later)) == [Result(0, "27\n"), Result(0, "ps\n")]


def test_the_host_needs_no_room_for_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = f"ls -A {tmp_path}; echo why >&2; exit 4"
    assert ask_one(HERE, fact(text)) == Result(4, "", "why\n")


def test_without_timeout_the_questions_are_asked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sh", "cat", "rm", "mktemp"):
        found = next(path for path in (Path(f"/usr/bin/{name}"), Path(f"/bin/{name}")))
        (tmp_path / name).symlink_to(found)
    # busybox of old: it has `timeout`, with other flags.
    (tmp_path / "timeout").write_text("#!/bin/sh\necho usage >&2; exit 1\n", "utf-8")
    (tmp_path / "timeout").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_one(HERE, fact("echo x")) == Result(0, "x\n")


def test_an_answer_whose_middle_was_left_out_shifts_no_other() -> None:
    big = fact("head -c 12000000 /dev/zero | tr '\\0' a")
    answers = ask(HERE, (fact("echo first"), big, fact("echo third")))
    assert answers[0] == Result(0, "first\n")
    assert "bytes left out" in answers[1].stdout
    assert answers[2] == Result(0, "third\n")


MARK = "@@m@@"


def joint(*answers: str, first: int = 0) -> str:
    return "".join(
        f"{MARK} {number} begin\n{text}\n{MARK} {number} errors 0\n\n{MARK} {number} end\n"
        for number, text in enumerate(answers, first)
    )


@pytest.mark.parametrize("cut", range(len(joint("one", "two"))))
def test_an_answer_that_was_cut_off_anywhere_is_right_or_missing(cut: int) -> None:
    found = split(Result(0, joint("one", "two")[:cut]), MARK)
    for number, text in enumerate(("one", "two")):
        assert found.get(number) in (None, Result(0, text))


@given(st.text(), st.text())
def test_no_noise_ends_the_reading(before: str, inside: str) -> None:
    split(Result(0, f"{before}{MARK} {inside}{MARK} {inside}\n"), MARK)
    found = split(Result(0, before + joint("one")), MARK)
    assert found == {0: Result(0, "one")}


def cut_after_first(command: Command) -> Result:
    mark = command.argv[-1]
    return Result(
        124, f"{mark} 0 begin\nx\n\n{mark} 0 errors 0\n\n{mark} 0 end\n{mark} 1 begin\n", "", True
    )


def test_what_was_not_reached_counts_as_unanswered() -> None:
    shell = FakeShell(on("sh", answer=cut_after_first))
    assert ask(shell, (fact("a"), fact("b"), fact("c"))) == [
        Result(0, "x\n"),
        Result(124, timed_out=True),
        Result(124, timed_out=True),
    ]


def test_a_host_that_answers_nothing_is_an_error() -> None:
    shell = FakeShell(on("sh", exit_code=124, timed_out=True))
    with pytest.raises(CommandTimedOut) as caught:
        ask(shell, (fact("a", limit_s=10),))
    assert str(caught.value) == "a: looking: no answer within 35 s: sh\n  (no output)"


def test_a_host_without_a_shell_is_another() -> None:
    shell = FakeShell(on("sh", exit_code=127, stderr="sh: not found"))
    with pytest.raises(CommandFailed) as caught:
        ask(shell, (fact("a"),))
    assert str(caught.value) == "a: looking: exit 127: sh\n  sh: not found"


def fake_sudo(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "sudo").write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    (folder / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_sudo_happens_once_and_for_its_own_questions_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sudo(tmp_path, monkeypatch, f'echo x >> {tmp_path}/log; shift 2; AS=root exec "$@"')
    said = 'echo "${AS-user}"'
    answers = ask(
        HERE, (fact(said, root=True), fact(said), fact(said, root=True), fact(said)), WITH_SUDO
    )
    assert [one.stdout for one in answers] == ["root\n", "user\n", "root\n", "user\n"]
    assert (tmp_path / "log").read_text("utf-8") == "x\n"


def test_a_sudo_that_says_no_speaks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sudo(tmp_path, monkeypatch, "echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(CommandFailed) as caught:
        ask(HERE, (fact("true", root=True),), WITH_SUDO)
    assert str(caught.value) == (
        "here: looking: exit 1: sudo sh\n  sudo: a password is required\n"
        "  -> set SSH_PASSWORD_FILE, allow sudo -n, or set SUDO=never"
    )


def test_a_password_for_sudo_is_tried_where_none_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sudo(
        tmp_path,
        monkeypatch,
        'if [ "$1" = -n ]; then echo "sudo: a password is required" >&2; exit 1; fi\n'
        'read -r word; [ "$word" = letmein ] || exit 1\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    )
    (tmp_path / "id").write_text('#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo u\n', "utf-8")
    (tmp_path / "id").chmod(0o755)
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    knows, wrong = (LocalShell("here", sudo_password=word) for word in ("letmein", "no"))
    assert ask_access(knows, "c", "always").sudo_files
    assert ask_one(knows, fact("echo in", root=True), WITH_SUDO) == Result(0, "in\n")
    assert not ask_access(wrong, "c", "auto").sudo_files


def test_a_host_that_does_not_say_who_we_are_is_an_error() -> None:
    shell = FakeShell(on("sh", answer=cut_after_first))
    with pytest.raises(CommandTimedOut, match="the host did not say who we are"):
        ask_access(shell, "c", "auto")
