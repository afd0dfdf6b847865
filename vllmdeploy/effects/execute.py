"""Carry out a plan: in parallel where it may, without knowing what any step means."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from vllmdeploy.core.command import Result, check
from vllmdeploy.core.plan import Plan, Run, Step, Wait
from vllmdeploy.effects.fanout import taken
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import NotHealthy, VllmdeployError


class Outcome(Enum):
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class StepOutcome:
    step: Step
    outcome: Outcome
    seconds: float = 0.0
    error: VllmdeployError | None = None
    because: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    step: Step


@dataclass(frozen=True, slots=True)
class Waiting:
    step: Step
    missing: str


@dataclass(frozen=True, slots=True)
class Finished:
    outcome: StepOutcome


Event = Started | Waiting | Finished
OnEvent = Callable[[Event], None]


@dataclass(slots=True)
class Stop:
    """Set by Ctrl-C or by a lost lock: no further step starts, waits end."""

    event: threading.Event
    because: str = "interrupted"

    @classmethod
    def new(cls) -> Stop:
        return cls(threading.Event())


def execute(
    plan: Plan, shells: Mapping[str, Shell], on_event: OnEvent, *, stop: Stop | None = None
) -> tuple[StepOutcome, ...]:
    """Run all steps; a failed one skips only what needs it. Outcomes come in the plan's order."""
    stop = stop or Stop.new()
    done: dict[str, StepOutcome] = {}
    finished: queue.SimpleQueue[StepOutcome | BaseException] = queue.SimpleQueue()
    waiting = list(plan.steps)
    running = 0
    say = _serialised(on_event)
    try:
        while waiting or running:
            settled = len(done)
            waiting, started = _start_ready(waiting, done, say, stop)
            for step in started:
                _in_background(step, shells, say, stop, finished)
            running += len(started)
            if waiting and not running and len(done) == settled:
                raise ValueError(f"these steps need each other: {[step.key for step in waiting]}")
            if running:
                outcome = taken(finished)
                if isinstance(outcome, BaseException):
                    raise outcome
                running -= 1
                done[outcome.step.key] = outcome
                say(Finished(outcome))
    except BaseException:
        stop.event.set()
        raise
    return tuple(done[step.key] for step in plan.steps)


def _serialised(on_event: OnEvent) -> OnEvent:
    lock = threading.Lock()

    def say(event: Event) -> None:
        with lock:
            on_event(event)

    return say


def _in_background(
    step: Step,
    shells: Mapping[str, Shell],
    say: OnEvent,
    stop: Stop,
    finished: queue.SimpleQueue[StepOutcome | BaseException],
) -> None:
    """A daemon thread: after Ctrl-C nobody waits for a download of an hour."""

    def work() -> None:
        try:
            finished.put(_carry_out(step, shells, say, stop))
        except BaseException as bug:
            finished.put(bug)

    threading.Thread(target=work, daemon=True, name=step.key).start()


def _start_ready(
    waiting: list[Step], done: dict[str, StepOutcome], say: OnEvent, stop: Stop
) -> tuple[list[Step], list[Step]]:
    """Steps that still wait, and steps to start now; what can no longer be done is settled."""
    left: list[Step] = []
    ready: list[Step] = []
    for step in waiting:
        if not all(need in done for need in step.needs):
            left.append(step)
            continue
        because = _why_not(step, done, stop)
        if because:
            skipped = StepOutcome(step, Outcome.SKIPPED, because=because)
            done[step.key] = skipped
            say(Finished(skipped))
        else:
            say(Started(step))
            ready.append(step)
    return left, ready


def _why_not(step: Step, done: Mapping[str, StepOutcome], stop: Stop) -> str:
    if stop.event.is_set():
        return stop.because
    broken = (need for need in step.needs if done[need].outcome is not Outcome.DONE)
    return next((f"needs `{need}`" for need in broken), "")


def _carry_out(step: Step, shells: Mapping[str, Shell], say: OnEvent, stop: Stop) -> StepOutcome:
    started = time.monotonic()
    try:
        match step.action:
            case Run(command):
                result = shells[step.host].run(command)
                check(step.host, command, result, doing=_doing(step), hint=step.hint)
            case Wait() as action:
                _wait(step, action, shells, say, stop)
    except VllmdeployError as error:
        seconds = time.monotonic() - started
        return StepOutcome(step, Outcome.FAILED, seconds, error)
    return StepOutcome(step, Outcome.DONE, time.monotonic() - started)


def _doing(step: Step) -> str:
    return f"{step.verb} {step.subject}"


def _wait(step: Step, action: Wait, shells: Mapping[str, Shell], say: OnEvent, stop: Stop) -> None:
    began = now = time.monotonic()
    deadline = began + action.limit_s
    missing: str | None = ""
    while True:
        patient = action.patient if missing else None
        command, asked_at = patient or action.command, now
        limit = max(1.0, min(command.limit_s, deadline - now))
        asked = shells[step.host].run(command.within(limit))
        answer = action.missing(asked)
        if answer is None:
            return
        if answer != missing:
            missing = answer
            say(Waiting(step, answer))
        if stop.event.is_set():
            raise NotHealthy(f"{step.host}: {_doing(step)}: given up ({stop.because}): {answer}")
        now = time.monotonic()
        pause_s = action.pause_s(now - began, held_s=now - asked_at if patient else 0.0)
        if now + pause_s >= deadline:
            break
        stop.event.wait(pause_s)
        now = time.monotonic()
    if action.at_most:
        return
    raise NotHealthy(
        f"{step.host}: {_doing(step)}: not within {action.limit_s:g} s: {missing}"
        + _explained(action, shells),
        hint=step.hint,
    )


def _explained(action: Wait, shells: Mapping[str, Shell]) -> str:
    """The last words of those who are being waited for; one who cannot be asked says that."""
    parts: list[str] = []
    for host, command in action.explain:
        try:
            said: Result | None = shells[host].run(command)
        except VllmdeployError as error:
            parts.append(f"\n  {host}: {error.message}")
            continue
        lines = [line for line in (said.output if said else "").splitlines() if line.strip()]
        shown = "".join(f"\n    {line}" for line in lines[-6:])
        parts.append(f"\n  {host}: {command}{shown}")
    return "".join(parts)


def first_error(outcomes: tuple[StepOutcome, ...]) -> VllmdeployError | None:
    return next((outcome.error for outcome in outcomes if outcome.error), None)
