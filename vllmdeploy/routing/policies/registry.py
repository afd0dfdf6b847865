"""Policies by name: ours, and a user's own from the entry point group `vllmdeploy.policies`."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.policies.adaptive import Adaptive
from vllmdeploy.routing.policies.base import Chance, Policy
from vllmdeploy.routing.policies.consistent_hash import ConsistentHash
from vllmdeploy.routing.policies.cost_optimized import CostOptimized
from vllmdeploy.routing.policies.least_inflight import LeastInflight
from vllmdeploy.routing.policies.power_of_two import PowerOfTwo
from vllmdeploy.routing.policies.prefix_affinity import PrefixAffinity
from vllmdeploy.routing.policies.random import Random
from vllmdeploy.routing.policies.round_robin import RoundRobin
from vllmdeploy.routing.policies.weighted import Weighted

GROUP = "vllmdeploy.policies"
DEFAULT = "adaptive"

_BUILT_IN: dict[str, Callable[[Chance], Policy]] = {
    "round_robin": lambda _: RoundRobin(),
    "random": Random,
    "least_inflight": LeastInflight,
    "power_of_two": PowerOfTwo,
    "consistent_hash": ConsistentHash,
    "prefix_affinity": PrefixAffinity,
    "weighted": lambda _: Weighted(),
    "cost_optimized": CostOptimized,
    "adaptive": Adaptive,
}
_ALIASES = {"load_balanced": "least_inflight"}


def names() -> tuple[str, ...]:
    return (*_BUILT_IN, *_ALIASES)


def create(
    name: str,
    chance: Chance = random.random,
    installed: Callable[[], Iterable[EntryPoint]] = lambda: entry_points(group=GROUP),
) -> Policy:
    """Installed packages are searched only for a name that is not ours, and only that one loads."""
    own = _BUILT_IN.get(_ALIASES.get(name, name))
    if own is not None:
        return own(chance)
    others = {entry.name: entry for entry in installed()}
    if name not in others:
        raise _unknown(name, (*names(), *others))
    policy = others[name].load()(chance)
    if not callable(getattr(policy, "order", None)):
        raise UsageError(
            f"routing policy {name} ({others[name].value}) has no method order",
            hint=f"an entry point of {GROUP} is called with a chance() and returns a policy",
        )
    return policy  # type: ignore[no-any-return]  # a stranger's object: only `order` can be seen


def _unknown(name: str, known: tuple[str, ...]) -> UsageError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"unknown routing policy {name!r}", hint=hint)
