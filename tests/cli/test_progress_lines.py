"""How a run looks while it runs, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from vllmdeploy.cli import progress
from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Run, Step
from vllmdeploy.effects.execute import Finished, Outcome, Started, StepOutcome, Waiting

STEP = Step("a", "create", "x\x1b[2J", "not found", Run(Command(("x",))))
EVENTS = (
    Started(STEP),
    Waiting(STEP, "2 hosts \x1b]0;evil\x07"),
    Finished(StepOutcome(STEP, Outcome.DONE, 1.26)),
    Finished(StepOutcome(STEP, Outcome.FAILED, 2.0)),
    Finished(StepOutcome(STEP, Outcome.SKIPPED, because="needs `y`")),
)


def test_elsewhere_every_event_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown() as on_event:
        for event in EVENTS:
            on_event(event)
    assert capsys.readouterr().err == (
        "a: create x\\x1b[2J ...\n"
        "a: create x\\x1b[2J: 2 hosts \\x1b]0;evil\\x07\n"
        "a: create x\\x1b[2J: done in 1.3 s\n"
        "a: create x\\x1b[2J: failed after 2.0 s\n"
        "a: create x\\x1b[2J: skipped, needs `y`\n"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_hosts_words_stay_words(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress.shown() as on_event:
        for event in EVENTS:
            on_event(event)
        on_event(EVENTS[0])
        on_event(EVENTS[1])
    said = screen.getvalue()
    assert "✓" in said
    assert "a: create x\\x1b[2J: done in 1.3 s" in said
    assert "\\x1b]0;evil\\x07" in said
    assert "\x1b]0;evil" not in said
    assert "x\x1b[2J" not in said
