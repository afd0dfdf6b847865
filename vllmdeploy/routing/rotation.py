"""Who may be sent a request now: health, panic, slow start, full queues, limits, who was tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from vllmdeploy.routing.health import Health
from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.states import LEAVING, SERVING, State
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds
from vllmdeploy.routing.upstream import Candidate


class Rotatable(Candidate, Protocol):
    @property
    def health(self) -> Health: ...


R = TypeVar("R", bound=Rotatable)


def serving(members: Sequence[R], limits: Thresholds = DEFAULTS) -> Sequence[R]:
    """Changes only when a Health reports a Change, so it may be kept until then.

    Panic: when less than half of the fleet serves, ejections are ignored, because the rest would
    be buried under the load of all. What is DOWN stays out: there is no port to send to.
    """
    healthy = [m for m in members if m.health.state in SERVING]
    counted = sum(
        m.health.state not in LEAVING and m.health.state is not State.STARTING for m in members
    )
    if len(healthy) >= limits.panic_below * counted and healthy:
        return healthy
    return [m for m in members if m.health.state in SERVING or m.health.state is State.EJECTED]


def available(
    members: Sequence[R],
    now: float,
    chance: Chance,
    *,
    tried: Collection[str] = (),
    limits: Thresholds = DEFAULTS,
) -> list[R]:
    """Of those that serve: who has a free place, is not full, and was not tried by this request.

    An instance in its slow start takes part with a growing probability, which works under every
    policy; where all are starting there is nobody to shift load to, and all take part.
    """
    if not tried:
        calm = [
            member
            for member in members
            if member.load.inflight < member.upstream.limit
            and member.health.busy_until <= now
            and member.health.slow_until <= now
        ]
        if len(calm) == len(members):
            return calm  # as nearly always
    free: list[R] = []
    warming: list[R] = []
    for member in members:
        health = member.health
        upstream = member.upstream
        if (
            member.load.inflight >= upstream.limit
            or health.busy_until > now
            or (tried and upstream.id in tried)
        ):
            continue
        if health.slow_until > now:
            warming.append(member)
        else:
            free.append(member)
    if not warming:
        return free
    if not free:
        return warming
    return free + [m for m in warming if chance() < _warmth(m.health, now, limits)]


def _warmth(health: Health, now: float, limits: Thresholds) -> float:
    done = 1 - (health.slow_until - now) / limits.slow_start_s
    return limits.slow_start_from + (1 - limits.slow_start_from) * done
