"""The one with the fewest requests: ours, and what the engine says of everybody's."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.upstream import C, Request


class LeastInflight:
    reads_requests = False

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        chance = self._chance
        return sorted(candidates, key=lambda c: c.load.inflight + c.load.others + chance())

    def first(self, candidates: Sequence[C], request: Request) -> C:
        # Counts are whole and chance is below one: it decides between equals only, without which
        # an idle fleet would send everything to the first in the list.
        chance = self._chance
        return min(candidates, key=lambda c: c.load.inflight + c.load.others + chance())
