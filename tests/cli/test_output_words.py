"""What a person and a program see, and what a terminal never gets to obey."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.cli import output
from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Plan, Run, Step
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.errors import CommandFailed, UsageError

EVIL = "\x1b]0;x\x07\x9b31m\r\x7f\u202e\x00"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def harmless(text: str) -> bool:
    return all(
        unicodedata.category(one) not in ("Cc", "Cf", "Cs") for one in text if one not in "\n\t"
    )


@given(st.text(st.characters()))
def test_nothing_that_is_shown_steers_a_terminal(text: str) -> None:
    assert harmless(output.clean(text))
    assert "\n" not in output.table(("A",), [(text,)]).partition("\n")[2]


def test_words_go_to_stderr_and_answers_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"word {EVIL}")
    output.answer("answer")
    output.document({"a": EVIL, "日本": 1})
    said = capsys.readouterr()
    assert said.err == "word \\x1b]0;x\\x07\\x9b31m\\x0d\\x7f\\x202e\\x00\n"
    first, _, document = said.out.partition("\n")
    assert first == "answer"
    assert harmless(document)
    assert json.loads(document) == {"a": EVIL, "日本": 1}


def test_an_error_shows_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.error(CommandFailed("a", "x", 1, EVIL, hint="look"))
    said = capsys.readouterr().err
    assert harmless(said)
    assert said.startswith("error: a: exit 1: x\n")
    assert said.endswith("\n  -> look\n")


def test_columns_are_as_wide_as_they_look() -> None:
    text = output.table(("HOST", "WHY"), [("日本語", "x"), ("a", "two\nlines\tin one"), ("é", "")])
    assert text == "HOST    WHY\n日本語  x\na       two lines in one\né"


def step(host: str = "a") -> Step:
    return Step(host, "create", "x", "not found", Run(Command(("docker", "run", "a b"))), ("n",))


def test_a_plan_reads_as_the_contract_says() -> None:
    assert output.plan_text(Plan((step(),), ("careful",))) == (
        "# note: careful\n# a: create x (not found)\ndocker run 'a b'"
    )
    assert output.plan_text(Plan()) == "# nothing to do"
    assert output.plan_document(Plan((step(),), ("n",))) == {
        "steps": [
            {
                "host": "a",
                "verb": "create",
                "subject": "x",
                "cause": "not found",
                "needs": ["n"],
                "argv": ["docker", "run", "a b"],
            }
        ],
        "notes": ["n"],
    }


def test_a_plan_shows_what_a_command_reads_where_that_is_no_secret() -> None:
    secret = Command(("tee", "token"), stdin=b"s3cret")
    unit = Command(("tee", "a.service"), stdin=b"[Unit]\n\nAfter=x\n", open_stdin=True)
    plan = Plan(
        tuple(
            Step("gpu-01", "write", what, "new", Run(command))
            for what, command in (("Ray token", secret), ("unit", unit.elevated().within(5)))
        )
    )
    assert output.plan_text(plan).splitlines() == [
        "# gpu-01: write Ray token (new)",
        "tee token",
        "# gpu-01: write unit (new)",
        "sudo -n -- tee a.service",
        "# < [Unit]",
        "# <",
        "# < After=x",
    ]
    first, second = output.plan_document(plan)["steps"]
    assert "stdin" not in first
    assert second["stdin"] == "[Unit]\n\nAfter=x\n"


def test_an_outcome_says_how_it_went_and_why() -> None:
    failed = StepOutcome(step(), Outcome.FAILED, 1.23456, CommandFailed("a", "x", 1, "no"))
    skipped = StepOutcome(step(), Outcome.SKIPPED, because="needs `y`")
    keys = {"host", "verb", "subject", "cause", "needs", "argv"}
    shown = output.outcome_document(failed)
    assert {key: shown[key] for key in shown.keys() - keys} == {
        "outcome": "failed",
        "seconds": 1.235,
        "error": "a: exit 1: x\n  no",
    }
    assert output.outcome_document(skipped)["because"] == "needs `y`"


@pytest.mark.parametrize("answer", ["n\n", "\n", "maybe\nn\n", ""])
def test_declined_is_an_error_of_usage(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    with pytest.raises(UsageError, match="declined: nothing was done"):
        output.confirm("Go?", yes=False)


def test_agreed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    output.confirm("Go?", yes=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    output.confirm("Go?", yes=True)


def test_ctrl_c_at_a_question_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(size: int = -1) -> str:
        raise KeyboardInterrupt

    person = Terminal()
    monkeypatch.setattr(person, "readline", interrupted)
    monkeypatch.setattr(sys, "stdin", person)
    with pytest.raises(KeyboardInterrupt):
        output.confirm("Go?", yes=False)


def test_nobody_to_ask_says_how_to_go_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError) as caught:
        output.confirm("Go?", yes=False)
    assert caught.value.hint == "say --yes to go ahead"


def test_a_screen_is_cleared_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for screen, shown in ((Terminal(), "\x1b[2J\x1b[H"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stdout", screen)
        output.clear()
        assert screen.getvalue() == shown
