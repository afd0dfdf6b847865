"""Each in turn."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.upstream import C, Request

_FORGOTTEN_WHEN_OVER = 4  # times as many ids kept as there are candidates


class RoundRobin:
    """Takes the one whose turn is longest ago.

    A counter modulo the number of candidates is unfair as soon as that number changes, which it
    does with every ejection and every retry; the age of the last turn stays exact.
    """

    reads_requests = False

    def __init__(self) -> None:
        self._turn = 0
        self._last: dict[str, int] = {}

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        last = self._last
        ordered = sorted(candidates, key=lambda c: last.get(c.upstream.id, 0))
        if ordered:
            self._taken(ordered[0], candidates)
        return ordered

    def first(self, candidates: Sequence[C], request: Request) -> C:
        turn_of = self._last.get
        chosen = candidates[0]
        earliest = turn_of(chosen.upstream.id, 0)
        for candidate in candidates:
            turn = turn_of(candidate.upstream.id, 0)
            if turn < earliest:
                chosen, earliest = candidate, turn
        self._taken(chosen, candidates)
        return chosen

    def _taken(self, chosen: C, candidates: Sequence[C]) -> None:
        self._turn += 1
        self._last[chosen.upstream.id] = self._turn
        if len(self._last) > _FORGOTTEN_WHEN_OVER * len(candidates) + 64:
            newest = sorted(self._last.items(), key=lambda item: -item[1])
            self._last = dict(newest[: 2 * len(candidates) + 32])
