"""What is asked before anything is decided about instances, wherever they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vllmdeploy.core.command import Command
from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import PreflightRefused, UsageError, VllmdeployError
from vllmdeploy.plan.instances_wanted import FoundInstances, instances_of, node_name
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.tools import mps_found, vllm
from vllmdeploy.tools.mps_found import Mps
from vllmdeploy.tools.vllm_engine import EngineState, parse_engine
from vllmdeploy.tools.vllm_model import FoundModel, folder
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows import service_look
from vllmdeploy.workflows.service_look import Seen
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """The fleet as services see it, and as instances do."""

    seen: Seen
    found: FoundInstances


def look(
    session: Session,
    *,
    model: str = "",
    hosts: tuple[str, ...] = (),
    mps: bool = False,
    of: str = "",
    seen: Seen | None = None,
) -> Looked:
    """`model`: a folder to look for, on the hosts that are meant; none named: on all. `mps`: their
    MPS daemons too, where they have such cards. `of`: hosts that have instances of this name are
    meant as well. `seen`: what was asked of the fleet before."""
    known = [host.name for host in session.fleet.hosts]
    for name in hosts:
        if name not in known:
            raise UsageError(f"{name} is not in the fleet", hint=f"there are: {', '.join(known)}")
    seen = seen or service_look.look(session, found=session.look_at_all())
    members = tuple(one for group in seen.groups.values() for one in group.members)
    lost = [
        why for name, reasons in seen.problems.items() if name not in seen.groups for why in reasons
    ]
    if lost:
        raise PreflightRefused(lost)
    homes = {one.head for one in instances_of(seen.instances) if one.belongs_to == of}
    asked = [one for one in members if model and (not hosts or one.name in {*hosts, *homes})]

    def answer_of(one: Member) -> _Answer:
        meant = one in asked
        shares = mps and meant and one.accelerator.name == "nvidia"
        return _ask(session, seen, one, model if meant else "", mps=shares)

    answers = each(members, answer_of)
    for answer in answers:
        if isinstance(answer, VllmdeployError):
            raise answer
    said = [one for one in answers if isinstance(one, _Answer)]
    found = FoundInstances(
        members=members,
        lead=session.lead.name,
        gateway_port=session.settings.api_port,
        stored=seen.instances,
        services=tuple(seen.services.values()),
        engines={name: state for one in said for name, state in one.engines.items()},
        vllm={one.host: one.vllm for one in said if one.vllm},
        models={one.host: one.model for one in said if one.model},
        mps={one.host: one.mps for one in said if one.mps},
    )
    return Looked(seen=seen, found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    host: str
    engines: dict[str, EngineState]
    vllm: vllm.Vllm | None = None
    model: FoundModel | None = None
    mps: Mps | None = None


def _ask(session: Session, seen: Seen, member: Member, model: str, *, mps: bool) -> _Answer:
    """One round trip to a host for its instances, its vLLM and its copy of the model."""
    nodes = list(_running(session, seen, member))
    facts: list[Fact[Any]] = [_engine(session, member, node) for _, node in nodes]
    can_tell = bool(model) and (
        session.wanted.runtime != "docker" or member.found.image is not None
    )
    if model:
        facts.append(folder(model))
    if can_tell:
        facts.append(vllm.installed(_probe(session, member)))
    if mps:
        facts.append(mps_found.found(mps_found.saved_modes(member.layout.root)))
    said = ask(session.shells[member.name], facts, member.found.access) if facts else []
    return _Answer(
        host=member.name,
        engines={one.name: state for (one, _), state in zip(nodes, said, strict=False)},
        model=said[len(nodes)] if model else None,
        vllm=said[len(nodes) + 1] if can_tell else None,
        mps=said[-1] if mps else None,
    )


def _running(session: Session, seen: Seen, member: Member) -> Iterable[tuple[Service, FoundNode]]:
    nodes = {one.name: one for one in member.found.ours(session.wanted.cluster)}
    for one in instances_of(seen.instances):
        node = nodes.get(node_name(session.wanted.cluster, one.name))
        if one.head == member.name and node and node.running:
            yield one, node


def _engine(session: Session, member: Member, node: FoundNode) -> Fact[EngineState]:
    command = session.supervisor.ctl(node.name, member.layout, node.package, "status")
    return Fact(node.name, command.within(10), lambda result: parse_engine(result, node.name))


def _probe(session: Session, member: Member) -> Command:
    """vLLM's sources are read where an engine would run: in the image, or by the interpreter."""
    program, *rest = vllm.probe_argv()
    wanted, image = session.wanted, member.found.image
    if wanted.runtime != "docker" or image is None:
        return Command((wanted.python, *rest), limit_s=30)
    run = ("docker", "run", "--rm", "--network", "none", *wanted.docker_arguments)
    return Command((*run, "--entrypoint", program, image.id, *rest), limit_s=60, root=True)
