"""What is asked before anything is decided about services: specs, engines, vLLM, models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask, ask_one
from vllmdeploy.effects.fanout import both, each
from vllmdeploy.errors import PreflightRefused, UsageError, VllmdeployError
from vllmdeploy.plan.group import GroupPlan
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.preflight import node_name
from vllmdeploy.plan.service_gateway_node import fleet_folder, gateway_name
from vllmdeploy.plan.service_gateways import front, gateway_of, refusals
from vllmdeploy.plan.service_wanted import FoundServices, inside
from vllmdeploy.tools import files, vllm
from vllmdeploy.tools.model_weights import weights, weights_argv
from vllmdeploy.tools.vllm_engine import EngineState, parse_engines
from vllmdeploy.tools.vllm_measured import Measured, measured
from vllmdeploy.tools.vllm_model import FoundModel, folder, readable_argv, unreadable
from vllmdeploy.tools.vllm_services import Service, Stored, stored
from vllmdeploy.workflows import cluster
from vllmdeploy.workflows.service_keys import Keys, gateway_wanted, kept_keys
from vllmdeploy.workflows.session import Session

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All groups with their services, and the gateways' part of a plan's ground. `gateways`: where
    they are to be; `retired`: those elsewhere; `fleet`: by host, the digest of what its gateway
    routes to; `instances`: specs of engines outside Ray."""

    groups: Mapping[str, FoundServices]
    keys: Keys
    gateways: tuple[Member, ...]
    retired: tuple[tuple[Member, FoundNode], ...] = ()
    fleet: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    instances: Mapping[str, Stored] = field(default_factory=dict[str, Stored])

    @property
    def services(self) -> dict[str, Service]:
        return {one.name: one for group in self.groups.values() for one in group.services}

    def group_of(self, name: str) -> FoundServices:
        """The group that has this service."""
        for group in self.groups.values():
            if name in group.stored or any(one.belongs_to == name for one in group.services):
                return group
        there = ", ".join(sorted({one.belongs_to for one in self.services.values()})) or "none"
        raise UsageError(f"there is no service {name}", hint=f"there are: {there}")

    def lead(self, name: str) -> Member:
        heads = (group.head for group in self.groups.values())
        return next(head for head in heads if head.name == name)

    @property
    def address(self) -> str:
        """Where the gateway is for other machines."""
        return self.gateways[0].place.ip


def look(session: Session, model: str = "", found: Mapping[str, FoundHost] | None = None) -> Seen:
    """The whole fleet as services see it; `model`: a folder to look for on every host."""
    found = found if found is not None else session.look_at_all()
    groups = cluster.decide_groups(session, found)
    there = {name: group.members for name, group in groups.items() if group.members}
    lead, shell = found[session.lead.name], session.shells[session.lead.name]
    gateways = places(session, found, groups)
    elsewhere = any(one.name != session.lead.name for one in gateways)

    def at_the_lead() -> tuple[Mapping[str, Stored], dict[str, bytes]]:
        instances = ask_one(shell, stored(lead.access.layout.instances), lead.access)
        return instances, kept_keys(shell, lead) if elsewhere else {}

    def at_gateways() -> tuple[tuple[Mapping[str, Stored], dict[str, bytes]], dict[str, str]]:
        return both(at_the_lead, lambda: _fleet_files(session, gateways))

    ((instances, kept), fleet), seen = both(
        at_gateways,
        lambda: _all([*there.values()], lambda members: _look_at(session, members, model)),
    )
    return Seen(
        groups=dict(zip(there, seen, strict=True)),
        keys=replace(gateway_wanted(session.settings, lead), kept=kept),
        gateways=gateways,
        retired=_retired(session, found, groups),
        fleet=fleet,
        problems={name: group.refusals for name, group in groups.items()},
        instances=instances,
    )


def places(
    session: Session, found: Mapping[str, FoundHost], groups: Mapping[str, GroupPlan]
) -> tuple[Member, ...]:
    """The hosts that are to have a gateway, as far as they answer."""
    wanted = [found[host.name] for host in session.fleet.offering if host.name in found]
    fronts = {host.name for host in session.fleet.fronts}
    reasons = refusals(session.wanted, (one for one in wanted if one.host.name in fronts))
    if reasons:
        raise PreflightRefused(reasons)
    return tuple(_member(one, groups) for one in wanted)


def _member(found: FoundHost, groups: Mapping[str, GroupPlan]) -> Member:
    members = (one for group in groups.values() for one in group.members)
    return next((one for one in members if one.name == found.host.name), None) or front(found)


def _retired(
    session: Session, found: Mapping[str, FoundHost], groups: Mapping[str, GroupPlan]
) -> tuple[tuple[Member, FoundNode], ...]:
    """None while one that is wanted does not answer: there may be no other."""
    wanted = {host.name for host in session.fleet.offering}
    if not wanted <= found.keys():
        return ()
    return tuple(
        (_member(one, groups), node)
        for name, one in found.items()
        if name not in wanted and (node := gateway_of(session.wanted, one))
    )


def _fleet_files(session: Session, gateways: Sequence[Member]) -> dict[str, str]:
    def ask_host(member: Member) -> str:
        fact = files.digests(fleet_folder(member.layout, gateway_name(session.wanted)))
        digests = ask_one(session.shells[member.name], fact, member.found.access)
        return digests.get("fleet.json", "")

    return _each(gateways, ask_host)


def _look_at(session: Session, members: tuple[Member, ...], model: str) -> FoundServices:
    head, wanted = members[0], session.wanted
    node = node_name(wanted, head.found)
    layout, way = head.layout, head.found.access
    package = next(
        (one.package for one in head.found.ours(wanted.cluster) if one.name == node), wanted.package
    )
    measuring = inside(wanted, node, *weights_argv(model)) if model else None
    facts: list[Fact[Any]] = [
        stored(layout.services),
        Fact("engines", session.supervisor.ctl(node, layout, package, "status"), parse_engines),
        vllm.installed(inside(wanted, node, *vllm.probe_argv())),
    ]
    if measuring:
        facts += [weights(measuring.within(60)), measured(layout.measured)]
    (said, engines, installed, *more), models = both(
        lambda: ask(session.shells[head.name], facts, way),
        lambda: _models(session, members, model) if model else {},
    )
    nothing: dict[str, Measured] = {}
    sizes, before = more or (None, nothing)
    services = [one.service for one in said.values() if one.service]
    others = look_elsewhere(session, members) if head.executor == "mp" else {}
    led = {
        one.name: others[one.leader].engines.get(one.name, EngineState())
        for one in services
        if one.leader in others
    }
    return FoundServices(
        members=members,
        stored=said,
        engines={**engines, **led},
        weights=sizes,
        measured=before,
        elsewhere={host: one.files for host, one in others.items()},
        vllm=installed,
        models=models,
    )


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What another host than the head has of services without Ray: files' digests, engines."""

    files: Mapping[str, str]
    engines: Mapping[str, EngineState]


def look_elsewhere(session: Session, members: Sequence[Member]) -> dict[str, Elsewhere]:
    """Every member but the first, which is the head, all at once."""

    def ask_host(member: Member) -> Elsewhere:
        node, layout = node_name(session.wanted, member.found), member.layout
        ours = member.found.ours(session.wanted.cluster)
        package = next((one.package for one in ours if one.name == node), session.wanted.package)
        status = session.supervisor.ctl(node, layout, package, "status")
        facts: list[Fact[Any]] = [
            files.digests(layout.services),
            Fact("engines", status, parse_engines),
        ]
        digests, engines = ask(session.shells[member.name], facts, member.found.access)
        return Elsewhere(digests, engines)

    return _each(members[1:], ask_host)


def _models(session: Session, members: tuple[Member, ...], path: str) -> dict[str, FoundModel]:
    def ask_host(member: Member) -> FoundModel:
        shell, way = session.shells[member.name], member.found.access
        if session.wanted.runtime != "docker":
            return ask_one(shell, folder(path), way)
        node = node_name(session.wanted, member.found)
        opening = inside(session.wanted, node, *readable_argv(path)).within(60)
        model: FoundModel
        model, closed = ask(shell, (folder(path), unreadable(opening)), way)
        return replace(model, unreadable=closed)

    return _each(members, ask_host)


def _each(members: Sequence[Member], ask_host: Callable[[Member], T]) -> dict[str, T]:
    """The answers by host; one host that gives none is an error."""
    names = (member.name for member in members)
    return dict(zip(names, _all(members, ask_host), strict=True))


def _all(items: Sequence[R], work: Callable[[R], T]) -> list[T]:
    """All at once, and all answers or the first error."""
    found: list[T] = []
    for answer in each(items, work):
        if isinstance(answer, VllmdeployError):
            raise answer
        found.append(answer)
    return found
