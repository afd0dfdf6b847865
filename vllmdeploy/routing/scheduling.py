"""Who of those that wait goes first: each way is a key, the lowest goes first."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.upstream import Request

DEFAULT = "adaptive"

# A rough time per token, only to weigh short work against waiting; it needs to be right within
# a factor of a few.
_SECONDS_PER_OUTPUT_TOKEN = 0.03
_SECONDS_PER_PROMPT_TOKEN = 0.0005
_SECONDS_PER_PRIORITY = 10.0

Key = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scheduling:
    """`key` never depends on later instants, so that a heap stays a heap. `keeps_deadlines`: who
    cannot be answered in time is turned away, so that the time is given to one who can."""

    name: str
    key: Callable[[Request, float], Key]
    keeps_deadlines: bool = False


def expected_seconds(request: Request) -> float:
    return (
        request.prompt_tokens * _SECONDS_PER_PROMPT_TOKEN
        + request.max_tokens * _SECONDS_PER_OUTPUT_TOKEN
    )


def _fifo(request: Request, now: float) -> Key:
    return (0.0, now)


def _priority(request: Request, now: float) -> Key:
    return (float(request.priority), now)


def _earliest_deadline(request: Request, now: float) -> Key:
    return (request.deadline if request.deadline is not None else float("inf"), now)


def _short_first(request: Request, now: float) -> Key:
    # Arrival plus work: a long request is overtaken for as long as it takes, and never starves.
    return (now + expected_seconds(request), now)


def _adaptive(request: Request, now: float) -> Key:
    """Short first, with a head start for each step of priority, and a deadline that comes near
    overtakes both."""
    work = expected_seconds(request)
    wanted = now + work + request.priority * _SECONDS_PER_PRIORITY
    if request.deadline is None:
        return (wanted, now)
    return (min(wanted, request.deadline - work), now)


_KNOWN = {
    way.name: way
    for way in (
        Scheduling("fifo", _fifo),
        Scheduling("priority", _priority),
        Scheduling("slo_aware", _earliest_deadline, keeps_deadlines=True),
        Scheduling("cost_optimized", _short_first),
        Scheduling("adaptive", _adaptive, keeps_deadlines=True),
    )
}


def names() -> tuple[str, ...]:
    return tuple(_KNOWN)


def scheduling(name: str) -> Scheduling:
    if name in _KNOWN:
        return _KNOWN[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), _KNOWN, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KNOWN)}"
    raise UsageError(f"unknown scheduling policy {name!r}", hint=hint)
