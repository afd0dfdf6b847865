"""What is asked before anything is decided about services: specs, engines, vLLM, models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask, ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import UsageError, VllmdeployError
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.preflight import node_name
from vllmdeploy.plan.service_gateway_node import fleet_folder, gateway_name
from vllmdeploy.plan.service_wanted import FoundServices, inside
from vllmdeploy.tools import files, vllm
from vllmdeploy.tools.vllm_engine import parse_engines
from vllmdeploy.tools.vllm_model import FoundModel, folder
from vllmdeploy.tools.vllm_services import Service, Stored, stored
from vllmdeploy.workflows import cluster
from vllmdeploy.workflows.service_keys import Keys, gateway_wanted
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All groups with their services, and the gateway's part of a plan's ground. `instances`:
    specs of engines outside Ray."""

    groups: Mapping[str, FoundServices]
    keys: Keys
    fleet: str = ""
    problems: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    instances: Mapping[str, Stored] = field(default_factory=dict[str, Stored])

    @property
    def services(self) -> dict[str, Service]:
        return {one.name: one for group in self.groups.values() for one in group.services}

    def group_of(self, name: str) -> FoundServices:
        """The group that has this service."""
        for group in self.groups.values():
            if name in group.stored:
                return group
        there = ", ".join(sorted(self.services)) or "none"
        raise UsageError(f"there is no service {name}", hint=f"there are: {there}")

    def address(self, lead: str) -> str:
        """Where the gateway is for other machines."""
        heads = (group.head for group in self.groups.values())
        return next(head.place.ip for head in heads if head.name == lead)


def look(session: Session, model: str = "", found: Mapping[str, FoundHost] | None = None) -> Seen:
    """The whole fleet as services see it; `model`: a folder to look for on every host."""
    found = found if found is not None else session.look_at_all()
    groups = cluster.decide_groups(session, found)
    seen: dict[str, FoundServices] = {}
    problems: dict[str, tuple[str, ...]] = {}
    for name, group in groups.items():
        if group.members:
            seen[name] = _look_at(session, group.members, model)
        problems[name] = group.refusals
    lead = found[session.lead.name]
    fleet = files.digests(fleet_folder(lead.access.layout, gateway_name(session.wanted)))
    facts = (fleet, stored(lead.access.layout.instances))
    digests, instances = ask(session.shells[session.lead.name], facts, lead.access)
    keys = gateway_wanted(session.settings, lead)
    return Seen(
        groups=seen,
        keys=keys,
        fleet=digests.get("fleet.json", ""),
        problems=problems,
        instances=instances,
    )


def _look_at(session: Session, members: tuple[Member, ...], model: str) -> FoundServices:
    head, wanted = members[0], session.wanted
    node = node_name(wanted, head.found)
    layout, way = head.layout, head.found.access
    package = next(
        (one.package for one in head.found.ours(wanted.cluster) if one.name == node), wanted.package
    )
    facts: list[Fact[Any]] = [
        stored(layout.services),
        Fact("engines", session.supervisor.ctl(node, layout, package, "status"), parse_engines),
        vllm.installed(inside(wanted, node, *vllm.probe_argv())),
    ]
    said, engines, installed = ask(session.shells[head.name], facts, way)
    return FoundServices(
        members=members,
        stored=said,
        engines=engines,
        vllm=installed,
        models=_models(session, members, model) if model else {},
    )


def _models(session: Session, members: tuple[Member, ...], path: str) -> dict[str, FoundModel]:
    def ask_host(member: Member) -> FoundModel:
        return ask_one(session.shells[member.name], folder(path), member.found.access)

    answers = each(members, ask_host)
    for answer in answers:
        if isinstance(answer, VllmdeployError):
            raise answer
    models = (one for one in answers if isinstance(one, FoundModel))
    return dict(zip((member.name for member in members), models, strict=True))
