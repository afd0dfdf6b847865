"""What to assume of an upstream's speed before it was measured."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.routing.upstream import C


def usual_pace(candidates: Sequence[C]) -> float:
    """The mean of those that are known: a new upstream is neither shunned nor swamped."""
    total, known = 0.0, 0
    for candidate in candidates:
        pace = candidate.load.pace_s
        if pace:
            total += pace
            known += 1
    return total / known if known else 1.0
