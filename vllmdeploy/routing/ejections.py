"""How long an instance stays out, by its record, and whether it may be put out at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.states import SERVING, State
from vllmdeploy.routing.thresholds import Thresholds


class HasState(Protocol):
    @property
    def state(self) -> State: ...


def may_eject(one: HasState, peers: Iterable[HasState], limits: Thresholds) -> bool:
    """Never the last that serves, and never more of them than the share allowed."""
    total = ejected = others_serving = 0
    for peer in peers:
        total += 1
        ejected += peer.state is State.EJECTED
        others_serving += peer.state in SERVING and peer is not one
    return others_serving > 0 and ejected + 1 <= limits.ejected_share_max * total


class Record:
    """Earlier ejections count until time in service has made up for them."""

    __slots__ = ("_count", "_limits", "_returned_at")

    def __init__(self, now: float, limits: Thresholds) -> None:
        self._count = 0
        self._limits = limits
        self._returned_at = now - limits.ejection_forgiven_after_s  # a new one has no record

    def returned(self, now: float) -> None:
        self._returned_at = now

    def ejected(self, now: float, chance: Chance, *, from_service: bool) -> float:
        """Seconds to stay out, twice as many each time."""
        if from_service:
            self._forgive(now)
        spread = 1 + self._limits.ejection_jitter * (2 * chance() - 1)
        return self._grown() * spread

    def went_down(self, now: float) -> float:
        """Nothing for a restart, which is no offence; else for a port that closes again so soon
        after its return that it is flapping."""
        self._forgive(now)
        if now - self._returned_at >= self._limits.ejection_s:
            return 0.0
        return self._grown()

    def _grown(self) -> float:
        # The maximum is reached long before a shift by 32.
        seconds = self._limits.ejection_s * (1 << min(self._count, 32))
        self._count += 1
        return min(seconds, self._limits.ejection_max_s)

    def _forgive(self, now: float) -> None:
        calm = int((now - self._returned_at) / self._limits.ejection_forgiven_after_s)
        self._count = max(0, self._count - calm)
