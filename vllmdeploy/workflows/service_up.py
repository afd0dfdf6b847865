"""What `up` does for stored services: they come back, on spares where their hosts are replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.instances_wanted import instances_of
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service_models import Lacking, lacking
from vllmdeploy.plan.service_spares import models_wanted, placed_anew
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.tools.vllm_engine import EngineState
from vllmdeploy.tools.vllm_model import FoundModel, folder
from vllmdeploy.tools.vllm_services import Service, stored
from vllmdeploy.workflows import cluster, instances_up
from vllmdeploy.workflows.instances_stored import stored_instances
from vllmdeploy.workflows.service import offering
from vllmdeploy.workflows.service_look import Seen, look
from vllmdeploy.workflows.service_room import refuse_what_has_no_room
from vllmdeploy.workflows.session import Session


def decide_up(session: Session, found: Mapping[str, FoundHost], *, patient: bool = True) -> Plan:
    """The whole fleet: its Ray nodes, and where services are stored, those and their gateway.
    `patient`: the plan ends when all services answer, and what has no room for that is refused;
    else it ends when all is done that helps them."""
    instances = stored_instances(session, found)
    found = instances_up.promised(found, instances)
    plan = cluster.decide_up(session, found)
    heads = [found[host.name] for host in session.fleet.hosts if host.head]
    kept = [
        ask_one(session.shells[head.host.name], stored(head.access.layout.services), head.access)
        for head in heads
    ]
    if not any(kept) and not instances:
        return plan
    seen = look(session, found=found)
    if patient:
        refuse_what_has_no_room(session, seen.groups)
    return _with_services(session, seen, plan, patient=patient)


def models_lacking(session: Session, found: Mapping[str, FoundHost]) -> tuple[Lacking, ...]:
    """Models of stored services, where a host that is to run them has none and another has it."""
    lacks: list[Lacking] = []
    for head in (found[host.name] for host in session.fleet.hosts if host.head):
        shell, way = session.shells[head.host.name], head.access
        kept = ask_one(shell, stored(way.layout.services), way)
        services = [one.service for one in kept.values() if one.service]
        group = [one for one in found.values() if one.host.group == head.host.group]
        members = [one for one in group if not one.host.spare]
        for model in sorted({one.model for one in services}):
            placed = {host for one in services if one.model == model for host in one.placement}
            lacks += lacking(model, _found_on(session, members, model), placed)
    return tuple(lacks)


def _found_on(session: Session, hosts: Sequence[FoundHost], model: str) -> dict[str, FoundModel]:
    fact = folder(f"{session.wanted.model_path.rstrip('/')}/{model}")
    answers = each(hosts, lambda one: ask_one(session.shells[one.host.name], fact, one.access))
    found: dict[str, FoundModel] = {}
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, VllmdeployError):
            raise answer
        found[host.host.name] = answer
    return found


def _with_services(session: Session, seen: Seen, plan: Plan, *, patient: bool) -> Plan:
    if not seen.services and not seen.instances:
        return plan
    draft = Draft(list(plan.steps), list(plan.notes))
    awaited: list[str] = []
    services: list[Service] = []
    for group in seen.groups.values():
        ground = Ground(
            draft=draft,
            wanted=session.wanted,
            supervisor=session.supervisor,
            head=group.head,
            members=group.with_ranks,
        )
        hosts = {member.name for member in group.members}
        before = tuple(step.key for step in plan if step.host in hosts)
        placed_anew, before = _with_spares(session, ground, group, before)
        moved = {name for name, one in placed_anew.stored.items() if one != group.stored[name]}
        awaited += _restored(ground, placed_anew, before, moved, patient=patient)
        services += placed_anew.services
    back = instances_up.Back()
    if instances_of(seen.instances):
        back = instances_up.bring_back(session, seen, draft, patient=patient)
    offered = offering(session, seen, draft)
    offered.restore(
        services, tuple(awaited), then=back.instances, after=back.awaited, patient=patient
    )
    return draft.finished()


def _restored(
    ground: Ground,
    group: FoundServices,
    before: tuple[str, ...],
    moved: Collection[str],
    *,
    patient: bool,
) -> list[str]:
    """What brings a group's services back; the keys of the steps that wait for them. `moved`: those
    whose files are written already."""
    states = {
        one.name: group.engines.get(one.name) or EngineState(state="not running")
        for one in group.services
    }
    given_up = [name for name, state in states.items() if state.state == "crash-loop"]
    if given_up and not before:
        before = (steps.retry(ground, given_up),)
    awaited: list[str] = []
    steps.remove_strays(ground, group)
    for service in group.services:
        state, content = states[service.name], group.stored[service.name].content
        written: tuple[str, ...] = ()
        if service.name not in moved:
            written = steps.restore_ranks(ground, service.name, content, group.elsewhere)
        lost = [host for host in service.placement if not ground.reaches(host)]
        if patient and lost and service.executor == "mp":
            ground.draft.note(
                f"service {service.name} has ranks on {', '.join(lost)}, no host of its group any"
                f" more: vllmdeploy restart-service {service.name} gives them other cards"
            )
        elif patient and (before or written or state.state != "running"):
            cause = "its spec is stored here" if before else state.words
            needs = (*before, *written)
            awaited.append(steps.await_answer(ground, service, cause, needs, fresh=False))
    return awaited


def _with_spares(
    session: Session, ground: Ground, group: FoundServices, before: tuple[str, ...]
) -> tuple[FoundServices, tuple[str, ...]]:
    """Services that wait for a host which a spare has replaced wait for the spare from now on."""
    members = {member.name for member in group.members}
    idle = {host.name for host in session.fleet.hosts if host.spare} - members
    anew = placed_anew(ground.wanted, group, idle)
    for note in (*anew.notes, *_models_lacking(session, group)):
        ground.draft.note(note)
    written = tuple(
        steps.write(ground, name, one.content, "a spare has the place of its host", before)
        for name, one in anew.changed.items()
    )
    return replace(group, stored={**group.stored, **anew.changed}), written or before


def _models_lacking(session: Session, group: FoundServices) -> Iterator[str]:
    """An engine whose rank finds no model on a spare ends again and again: said before."""
    members = {member.name: member for member in group.members}
    for spare, models in models_wanted(group).items():
        for model in sorted(models):
            path = f"{session.wanted.model_path.rstrip('/')}/{model}"
            way = members[spare].found.access
            if problem := ask_one(session.shells[spare], folder(path), way).problem:
                yield (
                    f"{spare}: model {path}: {problem}; services that come here need it:"
                    f" vllmdeploy model sync {model}"
                )
