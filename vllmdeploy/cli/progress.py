"""How a run looks while it runs: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllmdeploy.cli import output
from vllmdeploy.effects.execute import (
    Event,
    Finished,
    OnEvent,
    Outcome,
    Started,
    StepOutcome,
    Waiting,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_SIGNS = {Outcome.DONE: "✓", Outcome.FAILED: "✗", Outcome.SKIPPED: "-"}
_COLOURS = {Outcome.DONE: "green", Outcome.FAILED: "red", Outcome.SKIPPED: "yellow"}


@contextmanager
def shown() -> Generator[OnEvent]:
    if sys.stderr.isatty():
        with _live() as on_event:
            yield on_event
    else:
        yield _plain


def _plain(event: Event) -> None:
    match event:
        case Started(step):
            output.say(f"{step.key} ...")
        case Waiting(step, missing):
            output.say(f"{step.key}: {missing}")
        case Finished(outcome):
            output.say(_finished_line(outcome))


def _finished_line(outcome: StepOutcome) -> str:
    key = outcome.step.key
    match outcome.outcome:
        case Outcome.DONE:
            return f"{key}: done in {outcome.seconds:.1f} s"
        case Outcome.SKIPPED:
            return f"{key}: skipped, {outcome.because}"
        case Outcome.FAILED:
            return f"{key}: failed after {outcome.seconds:.1f} s"


class _Running:
    """The steps that run now, with what they wait for; rendered anew a few times a second."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        self.missing: dict[str, str] = {}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        rows: list[RenderableType] = []
        for key, since in list(self.since.items()):
            text = Text(output.clean(f"{key}  {time.monotonic() - since:.0f} s"))
            if self.missing.get(key):
                text.append(f"  {output.clean(self.missing[key])}", style="dim")
            rows.append(Spinner("dots", text=text))
        return Group(*rows)


@contextmanager
def _live() -> Generator[OnEvent]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    running = _Running()
    console = Console(stderr=True)
    with Live(running, console=console, transient=True, refresh_per_second=8):

        def on_event(event: Event) -> None:
            match event:
                case Started(step):
                    running.since[step.key] = time.monotonic()
                case Waiting(step, missing):
                    running.missing[step.key] = missing
                case Finished(outcome):
                    running.since.pop(outcome.step.key, None)
                    sign = _SIGNS[outcome.outcome]
                    colour = _COLOURS[outcome.outcome]
                    line = output.clean(_finished_line(outcome))
                    text = Text.assemble((f"{sign} ", colour), line)
                    console.print(text, soft_wrap=True)

        yield on_event
