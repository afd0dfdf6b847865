"""Which stored instances have to be brought back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllmdeploy.plan.instances_wanted import FoundInstances
from vllmdeploy.tools.vllm_services import Service


def on_members(found: FoundInstances) -> FoundInstances:
    """Without instances whose host is not in the fleet, or cannot be reached now."""
    there = {one.name for one in found.members}
    gone = {one.name for one in found.instances if one.head not in there}
    left = {name: one for name, one in found.stored.items() if name not in gone}
    return replace(found, stored=left)


def lacking_of(found: FoundInstances, *, patient: bool) -> tuple[Service, ...]:
    """All that do not answer. Without patience one on a host at a time, because nothing is waited
    for then, and none that loads, or whose warden gave up: that is left to a person."""
    lacking = tuple(one for one in found.instances if _lacks(found, one))
    return lacking if patient else tuple(_one_on_each_host(found, lacking))


def _lacks(found: FoundInstances, one: Service) -> bool:
    state = found.engines.get(one.name)
    return state is None or state.state != "running"


def _one_on_each_host(found: FoundInstances, lacking: Sequence[Service]) -> Iterable[Service]:
    busy = {one.head for one in lacking if _loads(found, one)}
    for one in lacking:
        if one.head not in busy and one.name not in found.engines:
            busy.add(one.head)
            yield one


def _loads(found: FoundInstances, one: Service) -> bool:
    state = found.engines.get(one.name)
    return state is not None and state.state != "crash-loop"
