"""What a policy is, and the cheap way to ask it for one candidate only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from vllmdeploy.routing.upstream import C, Request

Chance = Callable[[], float]
"""A number in [0, 1), as random.random gives it; tests give their own."""


class Policy(Protocol):
    """Best candidate first. Who is unhealthy, full or already tried was left out before."""

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]: ...


@runtime_checkable
class Chooser(Policy, Protocol):
    """A policy that can name its first without sorting the rest.

    Nearly every request is answered by the first candidate, and a retry asks again with loads that
    are newer, so the rest of an order is seldom read; a user's policy may leave this method out.
    """

    def first(self, candidates: Sequence[C], request: Request) -> C: ...


class Choose(Protocol):
    def __call__(self, candidates: Sequence[C], request: Request, /) -> C: ...


def reads_requests(policy: Policy) -> bool:
    """Whether it matters to this policy what is asked; else nobody needs to find it out. A user's
    policy that says nothing of it reads them."""
    return bool(getattr(policy, "reads_requests", True))


def chooser(policy: Policy) -> Choose:
    """How to ask this policy for its first; found out once, not for every request."""
    if isinstance(policy, Chooser):
        return policy.first
    order = policy.order

    def first_of_order(candidates: Sequence[C], request: Request, /) -> C:
        return order(candidates, request)[0]

    return first_of_order
