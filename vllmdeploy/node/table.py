"""What a supervised child does next: one table of (phase, event), the clock as an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Phase(str, Enum):
    WAITING = "waiting"  # for what it needs
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"  # asked to end, given time
    CLEARING = "clearing"  # everything it left is being killed
    BACKING_OFF = "backing-off"
    CRASH_LOOP = "crash-loop"  # given up until someone says retry
    STOPPED = "stopped"


class Action(str, Enum):
    SPAWN = "spawn"
    TERMINATE = "terminate"
    CLEAR = "clear"  # kill the child and all it left; `Cleared` follows


@dataclass(frozen=True, slots=True)
class Needs:
    """`lacking` says what is missing; empty means that all needs are met."""

    lacking: str


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """`final`: trying again cannot help (no such program)."""

    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    code: int


@dataclass(frozen=True, slots=True)
class Unhealthy:
    reason: str


@dataclass(frozen=True, slots=True)
class Cleared:
    pass


@dataclass(frozen=True, slots=True)
class Due:
    """The deadline of the present phase has passed."""


@dataclass(frozen=True, slots=True)
class Stop:
    pass


@dataclass(frozen=True, slots=True)
class Retry:
    pass


Event = Needs | Ready | SpawnFailed | Exited | Unhealthy | Cleared | Due | Stop | Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Patience. As many failures as there are delays are forgiven within the window, no more."""

    delays: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    window_s: float = 900.0
    start_s: float = 180.0
    stop_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Everything the next decision depends on."""

    limits: Limits
    phase: Phase = Phase.WAITING
    reason: str = "not started yet"
    lacking: str = "not checked yet"
    failures: tuple[float, ...] = ()
    spawned: int = 0
    deadline: float | None = None
    stop_asked: bool = False
    failed: bool = False

    @property
    def restarts(self) -> int:
        return max(0, self.spawned - 1)


_STOP_STARTING_S = 10.0
Decision = tuple[Life, tuple[Action, ...]]
NOTHING: tuple[Action, ...] = ()


def decide(life: Life, event: Event, now: float) -> Decision:
    """The table's answer; a pair that is not in the table changes nothing."""
    rule = TABLE.get((life.phase, type(event)))
    return rule(life, event, now) if rule else (life, NOTHING)


def exit_words(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    return "exited with code 0 without being asked to" if code == 0 else f"exited with code {code}"


def _begin(life: Life, now: float) -> Decision:
    if life.lacking:
        waiting = replace(life, phase=Phase.WAITING, reason=life.lacking, deadline=None)
        return waiting, NOTHING
    starting = replace(
        life,
        phase=Phase.STARTING,
        reason="",
        deadline=now + life.limits.start_s,
        spawned=life.spawned + 1,
        failed=False,
    )
    return starting, (Action.SPAWN,)


def _needs_while_down(life: Life, event: Event, now: float) -> Decision:
    return replace(life, lacking=_lacking(event)), NOTHING


def _needs_while_waiting(life: Life, event: Event, now: float) -> Decision:
    return _begin(replace(life, lacking=_lacking(event)), now)


def _needs_while_up(life: Life, event: Event, now: float) -> Decision:
    lacking = _lacking(event)
    if not lacking:
        return replace(life, lacking=""), NOTHING
    return _clear(replace(life, lacking=lacking), lacking, failed=False)


def _ready(life: Life, event: Event, now: float) -> Decision:
    return replace(life, phase=Phase.RUNNING, reason="", deadline=None), NOTHING


def _spawn_failed(life: Life, event: Event, now: float) -> Decision:
    assert isinstance(event, SpawnFailed)  # noqa: S101  the table routes only these here
    if event.final:
        given_up = replace(
            life, phase=Phase.CRASH_LOOP, reason=event.reason, deadline=None, failed=True
        )
        return given_up, NOTHING
    return _count_failure(replace(life, reason=event.reason), now)


def _exited(life: Life, event: Event, now: float) -> Decision:
    return _clear(life, _reason(event), failed=True)


def _unhealthy(life: Life, event: Event, now: float) -> Decision:
    return _clear(life, _reason(event), failed=True)


def _start_limit_passed(life: Life, event: Event, now: float) -> Decision:
    return _clear(life, f"not ready within {life.limits.start_s:g} s", failed=True)


def _end_of_stop(life: Life, event: Event, now: float) -> Decision:
    return _clear(life, life.reason, failed=False)


def _clear(life: Life, reason: str, *, failed: bool) -> Decision:
    clearing = replace(life, phase=Phase.CLEARING, reason=reason, deadline=None, failed=failed)
    return clearing, (Action.CLEAR,)


def _cleared(life: Life, event: Event, now: float) -> Decision:
    if life.stop_asked:
        return replace(life, phase=Phase.STOPPED, reason="stopped on request"), NOTHING
    # What dies because its need died is not to blame: no failure is counted.
    if life.lacking or not life.failed:
        return _begin(life, now)
    return _count_failure(life, now)


def _count_failure(life: Life, now: float) -> Decision:
    recent = tuple(at for at in life.failures if now - at < life.limits.window_s)
    failures = (*recent, now)
    delays = life.limits.delays
    if len(failures) > len(delays):
        words = f"{len(failures)} failures within {life.limits.window_s / 60:g} minutes, gave up"
        given_up = replace(
            life,
            phase=Phase.CRASH_LOOP,
            reason=f"{words}; the last: {life.reason}",
            failures=failures,
            deadline=None,
        )
        return given_up, NOTHING
    backing_off = replace(
        life,
        phase=Phase.BACKING_OFF,
        failures=failures,
        deadline=now + delays[len(failures) - 1],
    )
    return backing_off, NOTHING


def _back_off_over(life: Life, event: Event, now: float) -> Decision:
    return _begin(life, now)


def _retry(life: Life, event: Event, now: float) -> Decision:
    return _begin(replace(life, failures=()), now)


def _stop_while_starting(life: Life, event: Event, now: float) -> Decision:
    """Nobody waits for an answer of it, and a program that loads seldom hears."""
    limits = replace(life.limits, stop_s=min(life.limits.stop_s, _STOP_STARTING_S))
    return _stop_while_up(replace(life, limits=limits), event, now)


def _stop_while_up(life: Life, event: Event, now: float) -> Decision:
    stopping = replace(
        life,
        phase=Phase.STOPPING,
        reason="asked to stop",
        deadline=now + life.limits.stop_s,
        stop_asked=True,
    )
    return stopping, (Action.TERMINATE,)


def _stop_while_clearing(life: Life, event: Event, now: float) -> Decision:
    return replace(life, stop_asked=True), NOTHING


def _stop_while_down(life: Life, event: Event, now: float) -> Decision:
    stopped = replace(
        life, phase=Phase.STOPPED, reason="stopped on request", deadline=None, stop_asked=True
    )
    return stopped, NOTHING


def _lacking(event: Event) -> str:
    return event.lacking if isinstance(event, Needs) else ""


def _reason(event: Event) -> str:
    match event:
        case Exited(code):
            return exit_words(code)
        case Unhealthy(reason) | SpawnFailed(reason):
            return reason
        case _:
            return ""


Rule = Callable[[Life, Event, float], Decision]
TABLE: Mapping[tuple[Phase, type[Event]], Rule] = {
    (Phase.WAITING, Needs): _needs_while_waiting,
    (Phase.WAITING, Stop): _stop_while_down,
    (Phase.STARTING, Needs): _needs_while_up,
    (Phase.STARTING, Ready): _ready,
    (Phase.STARTING, SpawnFailed): _spawn_failed,
    (Phase.STARTING, Exited): _exited,
    (Phase.STARTING, Unhealthy): _unhealthy,
    (Phase.STARTING, Due): _start_limit_passed,
    (Phase.STARTING, Stop): _stop_while_starting,
    (Phase.RUNNING, Needs): _needs_while_up,
    (Phase.RUNNING, Exited): _exited,
    (Phase.RUNNING, Unhealthy): _unhealthy,
    (Phase.RUNNING, Stop): _stop_while_up,
    (Phase.STOPPING, Exited): _end_of_stop,
    (Phase.STOPPING, Due): _end_of_stop,
    (Phase.CLEARING, Needs): _needs_while_down,
    (Phase.CLEARING, Cleared): _cleared,
    (Phase.CLEARING, Stop): _stop_while_clearing,
    (Phase.BACKING_OFF, Needs): _needs_while_down,
    (Phase.BACKING_OFF, Due): _back_off_over,
    (Phase.BACKING_OFF, Retry): _retry,
    (Phase.BACKING_OFF, Stop): _stop_while_down,
    (Phase.CRASH_LOOP, Needs): _needs_while_down,
    (Phase.CRASH_LOOP, Retry): _retry,
    (Phase.CRASH_LOOP, Stop): _stop_while_down,
}
