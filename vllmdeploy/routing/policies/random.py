"""Any of them."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.upstream import C, Request


class Random:
    reads_requests = False

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        chance = self._chance
        return sorted(candidates, key=lambda _: chance())

    def first(self, candidates: Sequence[C], request: Request) -> C:
        return candidates[int(self._chance() * len(candidates))]
