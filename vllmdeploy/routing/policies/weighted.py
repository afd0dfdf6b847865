"""In proportion to the weights, spread as evenly over time as they allow."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.upstream import C, Request


class Weighted:
    """Smooth weighted round robin: all gain their weight, the richest goes and pays the total."""

    reads_requests = False

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        if not candidates:
            return ()
        total = self._gain(candidates)
        credit = self._credit
        ordered = sorted(candidates, key=lambda c: -credit[c.upstream.id])
        credit[ordered[0].upstream.id] -= total
        return ordered

    def first(self, candidates: Sequence[C], request: Request) -> C:
        total = self._gain(candidates)
        credit = self._credit
        chosen = max(candidates, key=lambda c: credit[c.upstream.id])
        credit[chosen.upstream.id] -= total
        return chosen

    def _gain(self, candidates: Sequence[C]) -> float:
        credit = self._credit
        total = 0.0
        for candidate in candidates:
            upstream = candidate.upstream
            total += upstream.weight
            credit[upstream.id] = credit.get(upstream.id, 0.0) + upstream.weight
        if len(credit) > 4 * len(candidates) + 64:
            present = {c.upstream.id for c in candidates}
            self._credit = {id_: left for id_, left in credit.items() if id_ in present}
        return total
