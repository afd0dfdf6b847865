"""The less loaded of two picked by chance: nearly as even as the least loaded of all, and calm
when what is known of the load is old."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.upstream import C, Request


class PowerOfTwo:
    reads_requests = False

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        chance = self._chance
        shuffled = sorted(candidates, key=lambda _: chance())
        if len(shuffled) > 1 and shuffled[1].load.pending < shuffled[0].load.pending:
            shuffled[0], shuffled[1] = shuffled[1], shuffled[0]
        return shuffled

    def first(self, candidates: Sequence[C], request: Request) -> C:
        count = len(candidates)
        one = int(self._chance() * count)
        if count == 1:
            return candidates[one]
        # A step of 1 to count-1 from the first can never come back to it.
        other = (one + 1 + int(self._chance() * (count - 1))) % count
        a, b = candidates[one], candidates[other]
        return b if b.load.pending < a.load.pending else a
