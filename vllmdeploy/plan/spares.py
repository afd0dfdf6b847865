"""Which hosts make up a group: a spare takes the place of one that stays dead, and keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllmdeploy.core.host import Host
from vllmdeploy.core.plan import Draft, Run, Step
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.supervise import Supervisor

_RAY_ROLES = ("ray-head", "ray-worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """`active`: the group's members, its head first. `standing_in`: dead or returned hosts by the
    spare that has their place. `retired`: hosts that are there and have no place (any more).
    `lost`: hosts that do not answer and that no spare can replace, and why."""

    active: tuple[FoundHost, ...]
    standing_in: Mapping[str, str] = field(default_factory=dict[str, str])
    retired: Mapping[str, str] = field(default_factory=dict[str, str])
    lost: Mapping[str, str] = field(default_factory=dict[str, str])
    fresh: tuple[str, ...] = ()
    """Spares that take a place only now."""


def lineup(cluster: str, hosts: Sequence[Host], found: Mapping[str, FoundHost]) -> Lineup:
    """`hosts`: all of a group, its head first; `found`: those of them that answer."""
    spares = [found[host.name] for host in hosts if host.spare and host.name in found]
    regular = [host for host in hosts if not host.spare]
    names = {host.name for host in regular}
    taken = {
        node.stands_in_for: spare
        for spare in spares
        if (node := _node(cluster, spare)) and node.stands_in_for in names
    }
    idle = [spare for spare in spares if spare not in taken.values()]
    in_ray = _in_ray(regular, found)
    active: list[FoundHost] = []
    standing_in: dict[str, str] = {}
    retired: dict[str, str] = {}
    lost: dict[str, str] = {}
    fresh: list[str] = []
    for host in regular:
        spare = taken.get(host.name)
        if spare is not None and not host.head:
            active.append(spare)
            standing_in[spare.host.name] = host.name
            if host.name in found:
                retired[host.name] = f"{spare.host.name} has its place"
        elif host.name in found:
            active.append(found[host.name])
        elif why := _irreplaceable(host, in_ray, idle):
            lost[host.name] = why
        else:
            spare = idle.pop(0)
            active.append(spare)
            standing_in[spare.host.name] = host.name
            fresh.append(spare.host.name)
    retired |= {spare.host.name: "it is a spare" for spare in idle}
    return Lineup(
        active=tuple(active),
        standing_in=standing_in,
        retired=retired,
        lost=lost,
        fresh=tuple(fresh),
    )


def _irreplaceable(host: Host, in_ray: frozenset[str], idle: Sequence[FoundHost]) -> str:
    if host.head:
        return "the group's head cannot be replaced: its specs and secrets are there"
    if host.name in in_ray:
        return "Ray still reports it: only the way from here to it is broken"
    return "" if idle else "no spare of its group is left"


def _in_ray(hosts: Iterable[Host], found: Mapping[str, FoundHost]) -> frozenset[str]:
    heads = (found[host.name].ray for host in hosts if host.head and host.name in found)
    return frozenset(name for ray in heads if ray for name in ray.alive())


def _node(cluster: str, found: FoundHost) -> FoundNode | None:
    return next((one for one in found.ours(cluster) if one.role in _RAY_ROLES), None)


def retire(
    draft: Draft,
    cluster: str,
    lined: Lineup,
    found: Mapping[str, FoundHost],
    supervisor: Supervisor,
) -> None:
    """What ran on a host before another took its place never joins again."""
    for name, why in lined.retired.items():
        host = found[name]
        node = _node(cluster, host)
        if node is None:
            continue
        needs: tuple[str, ...] = ()
        commands = supervisor.remove(node, host.access.layout)
        for verb, command in zip(("stop", "remove"), commands, strict=False):
            action = Run(host.access.of(command))
            needs = (draft.add(Step(name, verb, node.name, why, action, needs, True)),)
