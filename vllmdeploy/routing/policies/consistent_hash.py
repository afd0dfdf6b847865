"""The same session to the same upstream, whatever its load."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.policies.least_inflight import LeastInflight
from vllmdeploy.routing.policies.rendezvous import score
from vllmdeploy.routing.upstream import C, Request


class ConsistentHash:
    """Without a session the prompt's start stands in for one; with neither, the least loaded."""

    def __init__(self, chance: Chance) -> None:
        self._otherwise = LeastInflight(chance)

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        key = _key(request)
        if key is None:
            return self._otherwise.order(candidates, request)
        return sorted(candidates, key=lambda c: -score(key, c.upstream.seed))

    def first(self, candidates: Sequence[C], request: Request) -> C:
        key = _key(request)
        if key is None:
            return self._otherwise.first(candidates, request)
        return max(candidates, key=lambda c: score(key, c.upstream.seed))


def _key(request: Request) -> int | None:
    affinity = request.affinity
    if affinity.session is not None:
        return affinity.session
    return affinity.prefixes[0] if affinity.prefixes else None
