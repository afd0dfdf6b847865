"""`start-service`, and what `up` does for services: models served on a group's hosts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.instances_wanted import instances_of
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service import DecidedService, model_folder, service_name
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateway_node import GatewayWanted
from vllmdeploy.plan.service_gateways import Gateways
from vllmdeploy.plan.service_replicas import decide_replicas, engines_of
from vllmdeploy.plan.service_spares import models_wanted, placed_anew
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import ExecutorChoice
from vllmdeploy.tools.vllm_engine import EngineState, Task
from vllmdeploy.tools.vllm_model import folder
from vllmdeploy.tools.vllm_services import Service, stored
from vllmdeploy.workflows import cluster, instances_sites, instances_up
from vllmdeploy.workflows.service_keys import Keys
from vllmdeploy.workflows.service_look import Seen, look
from vllmdeploy.workflows.service_room import refuse_what_has_no_room
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """Steps, the service they are about, what to show once, and the way back from what came of
    them: no steps where nothing has to be undone. `address`: where the gateway is for others."""

    plan: Plan
    service: Service
    keys: Keys
    back: Callable[[Sequence[StepOutcome]], Plan] = lambda _: Plan()
    address: str = ""


def asked_of(
    settings: Settings, model: str, *, tensor_parallel: int | None, **more: Any
) -> ServiceWanted:
    """What the command line says, then the settings."""
    given = {key: value for key, value in more.items() if value is not None}
    ports = settings.engine_ports
    arguments = (*settings.extra_vllm_args, *given.pop("arguments", ()))
    base = ServiceWanted(
        model=model,
        tensor_parallel=settings.default_tp_size if tensor_parallel is None else tensor_parallel,
        executor=cast("ExecutorChoice", settings.executor),
        quantization=settings.quantization,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        drain_s=settings.drain_s,
        arguments=arguments,
        ports=(ports.first, ports.last),
    )
    return replace(base, **given)


def checked_task(text: str) -> Task:
    tasks: dict[str, Task] = {"generate": "generate", "embed": "embed", "rerank": "rerank"}
    if text not in tasks:
        raise UsageError(f"--task {text}: it is one of {', '.join(tasks)}")
    return tasks[text]


def decide_start(session: Session, asked: ServiceWanted, group: str) -> ServicePlan:
    seen = look(session, model_folder(session.wanted, asked))
    ground, found = ground_of(session, seen, group)
    asked = placed(session, asked, found)
    name = service_name(asked)
    engines = engines_of(found, name)
    if engines and all(_same(one, asked) for one in engines) and len(engines) == asked.replicas:
        return _carried_on(session, seen, ground, found, engines)
    decided = decide_replicas(session.wanted, asked, found)
    cause = "its engine loads and answers a canary"
    awaited: list[str] = []
    for one in decided:
        written = steps.write(ground, one.service.name, one.file.content(), "not there")
        awaited.append(steps.await_answer(ground, one.service, cause, (written,), fresh=True))
        steps.remember(ground, one.service, one.conditions, (awaited[-1],))
        for note in one.notes:
            ground.draft.note(note)
    services = [*seen.services.values(), *(one.service for one in decided)]
    offering(session, seen, ground.draft).up(services, "a new service", tuple(awaited))
    return ServicePlan(
        plan=ground.draft.finished(),
        service=decided[0].service,
        keys=seen.keys,
        back=lambda outcomes: _undone(ground, decided, {*awaited}, outcomes),
        address=seen.address,
    )


def _same(engine: Service, asked: ServiceWanted) -> bool:
    return replace(ServiceWanted.stored(engine.asked), replica=1) == asked


def _undone(
    ground: Ground,
    decided: Sequence[DecidedService],
    awaited: Collection[str],
    outcomes: Sequence[StepOutcome],
) -> Plan:
    """All engines go when one did not come up. A gateway that failed is no reason to end them."""
    failed = {one.step.key for one in outcomes if one.outcome is Outcome.FAILED}
    undo = replace(ground, draft=Draft())
    for one in decided if failed.intersection(awaited) else ():
        name, ranks = one.service.name, one.service.placement
        steps.remove(undo, name, "it did not start", ranks=ranks)
    return undo.draft.finished()


def _carried_on(
    session: Session,
    seen: Seen,
    ground: Ground,
    found: FoundServices,
    engines: Sequence[Service],
) -> ServicePlan:
    """The same wish once more, as after Ctrl-C: what is left of it to do."""
    needs: tuple[str, ...] = ()
    for service in engines:
        state = found.engines.get(service.name) or EngineState()
        if state.state != "running":
            needs += (steps.await_answer(ground, service, state.words, (), fresh=True),)
    offering(session, seen, ground.draft).restore([*seen.services.values()], needs)
    return ServicePlan(
        plan=ground.draft.finished(),
        service=engines[0],
        keys=seen.keys,
        address=seen.address,
    )


def decide_up(session: Session, found: Mapping[str, FoundHost], *, patient: bool = True) -> Plan:
    """The whole fleet: its Ray nodes, and where services are stored, those and their gateway.
    `patient`: the plan ends when all services answer, and what has no room for that is refused;
    else it ends when all is done that helps them."""
    instances = instances_up.stored_instances(session, found)
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
        awaited += _restored(ground, placed_anew, before, patient=patient)
        services += placed_anew.services
    back = instances_up.Back()
    if instances_of(seen.instances):
        back = instances_up.bring_back(session, seen, draft, patient=patient)
    offered = offering(session, seen, draft)
    offered.restore(services, tuple(awaited), then=back.instances, after=back.awaited)
    return draft.finished()


def _restored(
    ground: Ground, group: FoundServices, before: tuple[str, ...], *, patient: bool
) -> list[str]:
    """What brings a group's services back; the keys of the steps that wait for them."""
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
        written = steps.restore_ranks(ground, service.name, content, group.elsewhere)
        if patient and (before or written or state.state != "running"):
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
                    f" vllmdeploy sync {model}"
                )


def ground_of(session: Session, seen: Seen, group: str) -> tuple[Ground, FoundServices]:
    if group not in seen.problems:
        groups = ", ".join(seen.problems)
        raise UsageError(f"there is no group {group}", hint=f"there are: {groups}")
    if group not in seen.groups:
        raise PreflightRefused(seen.problems[group])
    found = seen.groups[group]
    ground = Ground(
        draft=Draft(),
        wanted=session.wanted,
        supervisor=session.supervisor,
        head=found.head,
        members=found.with_ranks,
    )
    return ground, found


def placed(session: Session, asked: ServiceWanted, found: FoundServices) -> ServiceWanted:
    """Engines listen on loopback where the gateway is beside them, else on the fleet's address."""
    beside = found.head.name == instances_sites.beside(session)
    return replace(asked, host="127.0.0.1" if beside else found.head.place.ip)


def offering(session: Session, seen: Seen, draft: Draft) -> Gateways:
    ground = Ground(
        draft=draft,
        wanted=session.wanted,
        supervisor=session.supervisor,
        head=seen.lead(session.lead.name),
    )

    def at(member: Member, gateway: GatewayWanted) -> Offering:
        return Offering(
            ground=replace(ground, head=member),
            gateway=gateway,
            package=session.package[0],
            fleet=seen.fleet.get(member.name, ""),
            instances=instances_of(seen.instances),
        )

    keys, lead = seen.keys, session.lead.name
    wanted = tuple(at(one, keys.on(one.name, lead)) for one in seen.gateways)
    keeper = None if lead in {one.name for one in seen.gateways} else at(ground.head, keys.gateway)
    return Gateways(
        of=wanted,
        keeper=keeper,
        retired=tuple((replace(ground, head=one), node) for one, node in seen.retired),
    )
