"""The cheapest tokens first, while there is room where they are made."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.policies.pace import usual_pace
from vllmdeploy.routing.upstream import C, Candidate, Request

# Not to the brim: what other gateways send is seen only at the next poll.
_FULL_AT = 0.75


class CostOptimized:
    """Price per hour times measured seconds per token is the price of a token.

    An upstream that is nearly at its limit, or whose engine already queues, has no room: it comes
    after all that have, and there the least loaded goes first, because then nobody saves anything.
    """

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        usual = usual_pace(candidates)
        return sorted(candidates, key=lambda c: self._price(c, usual))

    def first(self, candidates: Sequence[C], request: Request) -> C:
        usual = usual_pace(candidates)
        return min(candidates, key=lambda c: self._price(c, usual))

    def _price(self, candidate: Candidate, usual: float) -> tuple[bool, float, float]:
        upstream, load = candidate.upstream, candidate.load
        pending = load.inflight + load.others
        if pending >= _FULL_AT * upstream.limit or load.observed.waiting:
            return True, pending / upstream.limit, self._chance()
        return False, upstream.cost * (load.pace_s or usual), pending + self._chance()
