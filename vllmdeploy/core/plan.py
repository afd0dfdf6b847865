"""A plan: small steps with causes and needs, decided before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vllmdeploy.core.command import Command, Result

_SOON_S = 0.25
_USUAL_S = 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """Run it once; a non-zero status fails the step."""

    command: Command


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask until `missing` says nothing is missing, or the limit is over.

    `missing` reads an answer and returns what is still missing, or None when there is nothing.
    `every_s`: how often about ten seconds after the beginning.
    `patient`: the same question, where it may be answered late: at once when there is news, else
    after some seconds. Not for the first time, whose answer is shown.
    `at_most`: when the limit is over it goes on, whatever is missing.
    `explain` is asked once when the limit is over: its last lines go into the error.
    """

    command: Command
    missing: Callable[[Result], str | None]
    limit_s: float
    every_s: float = 1.0
    explain: tuple[tuple[str, Command], ...] = ()
    patient: Command | None = None
    at_most: bool = False

    def pause_s(self, waited_s: float, *, held_s: float = 0.0) -> float:
        """How long to leave it alone, after so long. Most things come soon, and what takes long is
        asked seldom: every answer takes processors away from what is awaited. `held_s`: how long a
        patient question was held, which was a pause already."""
        soon = min(self.every_s, _SOON_S)
        if held_s >= self.every_s:
            return soon
        return min(2 * self.every_s, max(soon, self.every_s * waited_s / _USUAL_S))


Action = Run | Wait


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do on one host, why, and which steps must have succeeded before."""

    host: str
    verb: str
    subject: str
    cause: str
    action: Action
    needs: tuple[str, ...] = ()
    destructive: bool = False
    hint: str = ""

    @property
    def key(self) -> str:
        return f"{self.host}: {self.verb} {self.subject}"

    @property
    def command(self) -> Command:
        return self.action.command


@dataclass(frozen=True, slots=True)
class Plan:
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def destructive(self) -> bool:
        return any(step.destructive for step in self.steps)


@dataclass(slots=True)
class Draft:
    """A plan being written; `add` returns the step's key, for the needs of later ones."""

    steps: list[Step] = field(default_factory=list[Step])
    notes: list[str] = field(default_factory=list[str])

    def add(self, step: Step) -> str:
        if any(known.key == step.key for known in self.steps):
            raise ValueError(f"planned twice: {step.key}")
        known_keys = {known.key for known in self.steps}
        unknown = [need for need in step.needs if need not in known_keys]
        if unknown:
            raise ValueError(f"{step.key} needs what is not planned before it: {unknown}")
        self.steps.append(step)
        return step.key

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def finished(self) -> Plan:
        return Plan(tuple(self.steps), tuple(self.notes))
