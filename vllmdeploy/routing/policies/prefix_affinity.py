"""Prompts that begin alike to the same upstream, so that its prefix cache is used, within a bound.

The key is a hash of the prompt's start and the bound comes from load that all gateways see, so
several gateways agree on the place of a prompt without talking to each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.policies.least_inflight import LeastInflight
from vllmdeploy.routing.policies.rendezvous import score
from vllmdeploy.routing.upstream import C, Request

# The first 256 characters: long enough to tell prompts apart, short enough that the first turn of
# a conversation reaches it, so that later turns keep its key.
_DEPTH = 1
_ABOVE_MEAN = 1.25


class PrefixAffinity:
    """Consistent hashing with bounded loads: no upstream takes a request by affinity when it would
    then hold more than 1.25 times the mean; what it cannot take goes to the next in its order."""

    def __init__(self, chance: Chance) -> None:
        self._otherwise = LeastInflight(chance)

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        key = _key(request)
        if key is None:
            return self._otherwise.order(candidates, request)
        bound = bound_of(candidates)
        return sorted(
            candidates, key=lambda c: (c.load.pending >= bound, -score(key, c.upstream.seed))
        )

    def first(self, candidates: Sequence[C], request: Request) -> C:
        key = _key(request)
        if key is None:
            return self._otherwise.first(candidates, request)
        bound = bound_of(candidates)
        best, best_score = candidates[0], -1
        for candidate in candidates:
            load = candidate.load
            if load.inflight + load.others < bound:
                points = score(key, candidate.upstream.seed)
                if points > best_score:
                    best, best_score = candidate, points
        return best


def bound_of(candidates: Sequence[C]) -> float:
    """An upstream below it may take one more. At least one always is: the mean is below it."""
    total = sum(c.load.inflight + c.load.others for c in candidates)
    return _ABOVE_MEAN * (total + 1) / len(candidates) if candidates else 0.0


def _key(request: Request) -> int | None:
    prefixes = request.affinity.prefixes
    if prefixes:
        return prefixes[min(_DEPTH, len(prefixes) - 1)]
    return request.affinity.session
