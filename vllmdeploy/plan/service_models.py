"""Models that hosts of a service lack although another host of their group has them whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from vllmdeploy.core.plan import Plan, Step
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.tools.vllm_model import FoundModel


@dataclass(frozen=True, slots=True)
class Lacking:
    """A model, and the hosts that it is to be brought to before its service can start."""

    model: str
    hosts: frozenset[str]


def lacking(
    model: str, found: Mapping[str, FoundModel], needed: Collection[str] = ()
) -> tuple[Lacking, ...]:
    """`needed`: where it has to be; without any, everywhere. What is there and is another copy is
    no matter of bringing it; neither is what nobody has."""
    lacks = (host for host, one in found.items() if not _whole(one) and _unfinished(one))
    hosts = frozenset(host for host in lacks if not needed or host in needed)
    return (Lacking(model, hosts),) if hosts and any(map(_whole, found.values())) else ()


def _whole(one: FoundModel) -> bool:
    return bool(one.digest) and not one.problem


def _unfinished(one: FoundModel) -> bool:
    return not one.there or (one.managed and not one.digest)


def as_if_there(found: FoundServices, lacks: Iterable[Lacking]) -> FoundServices:
    """What is decided once they have it."""
    whole = next((one for one in found.models.values() if _whole(one)), FoundModel())
    there = {host: whole for each in lacks for host in each.hosts}
    return replace(found, models={**found.models, **there})


def together(plans: Iterable[Plan]) -> Plan:
    """One plan to show; what several of them begin with is there once."""
    steps: dict[str, Step] = {}
    notes: dict[str, None] = {}
    for plan in plans:
        steps.update({step.key: step for step in plan if step.key not in steps})
        notes.update(dict.fromkeys(plan.notes))
    return Plan(tuple(steps.values()), tuple(notes))
