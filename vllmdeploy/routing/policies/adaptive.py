"""The default: load, measured speed and prefix reuse weighed against each other."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.policies.base import Chance
from vllmdeploy.routing.policies.pace import usual_pace
from vllmdeploy.routing.upstream import PREFIX_LENGTHS, C, Candidate, Request

# Found with bench/simulate_routing.py. The slack makes small differences in load unimportant, the
# discount says how much more load a prompt accepts to be where all of it is cached already.
_SLACK = 4.0
_DISCOUNT = 0.5
_CHARACTERS_PER_TOKEN = 4


class Adaptive:
    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        usual = usual_pace(candidates)
        return sorted(candidates, key=lambda c: self._expense(c, usual, request))

    def first(self, candidates: Sequence[C], request: Request) -> C:
        usual = usual_pace(candidates)
        return min(candidates, key=lambda c: self._expense(c, usual, request))

    def _expense(self, candidate: Candidate, usual: float, request: Request) -> float:
        load = candidate.load
        # Chance below one half of a request parts equals and hardly ever anything else.
        busy = load.inflight + load.others + _SLACK + self._chance() * 0.5
        expense = busy * (load.pace_s or usual)
        if load.prefixes and request.affinity.prefixes:
            expense *= 1 - _DISCOUNT * reused_share(load.prefixes, request)
        return expense


def reused_share(known: dict[int, None], request: Request) -> float:
    """How much of the prompt an upstream has seen before, from 0 to 1."""
    prefixes = request.affinity.prefixes
    for position in range(len(prefixes) - 1, -1, -1):
        if prefixes[position] in known:
            length = PREFIX_LENGTHS[position]
            return min(1.0, length / max(1, request.prompt_tokens * _CHARACTERS_PER_TOKEN))
    return 0.0
