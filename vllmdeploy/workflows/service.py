"""`start-service`: models served on a group's hosts, and the ground that all their plans share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.instances_wanted import instances_of
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service import DecidedService, model_folder, service_name
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateway_node import GatewayWanted
from vllmdeploy.plan.service_gateways import Gateways
from vllmdeploy.plan.service_models import Lacking, as_if_there, lacking
from vllmdeploy.plan.service_replicas import decide_replicas, engines_of
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import ExecutorChoice
from vllmdeploy.tools.vllm_engine import EngineState, Task
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows import instances_sites
from vllmdeploy.workflows.service_keys import Keys
from vllmdeploy.workflows.service_look import Seen, look
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """Steps, the service they are about, what to show once, and the way back from what came of
    them: no steps where nothing has to be undone. `address`: where the gateway is for others.
    `lacks`: what has to be brought to hosts before, as if it were there already."""

    plan: Plan
    service: Service
    keys: Keys
    back: Callable[[Sequence[StepOutcome]], Plan] = lambda _: Plan()
    address: str = ""
    lacks: tuple[Lacking, ...] = ()


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
    lacks = lacking(model_folder(session.wanted, asked).rpartition("/")[2], found.models)
    decided = decide_replicas(session.wanted, asked, as_if_there(found, lacks))
    cause = "its engine loads and answers a canary"
    written: list[str] = []
    awaited: list[str] = []
    for one in decided:
        written.append(steps.write(ground, one.service.name, one.file.content(), "not there"))
        needs = (written[-1],)
        awaited.append(steps.await_answer(ground, one.service, cause, needs, fresh=True))
        steps.remember(ground, one.service, one.conditions, (awaited[-1],))
        for note in one.notes:
            ground.draft.note(note)
    services = [*seen.services.values(), *(one.service for one in decided)]
    gateways = offering(session, seen, ground.draft)
    gateways.up(services, "a new service", tuple(awaited), told=tuple(written))
    return ServicePlan(
        plan=ground.draft.finished(),
        service=decided[0].service,
        keys=seen.keys,
        back=lambda outcomes: _undone(session, seen, ground, decided, {*awaited}, outcomes),
        address=seen.address,
        lacks=lacks,
    )


def _same(engine: Service, asked: ServiceWanted) -> bool:
    return replace(ServiceWanted.stored(engine.asked), replica=1) == asked


def _undone(
    session: Session,
    seen: Seen,
    ground: Ground,
    decided: Sequence[DecidedService],
    awaited: Collection[str],
    outcomes: Sequence[StepOutcome],
) -> Plan:
    """All engines go when one did not come up. A gateway that failed is no reason to end them."""
    failed = {one.step.key for one in outcomes if one.outcome is Outcome.FAILED}
    if not failed.intersection(awaited):
        return Plan()
    undo = replace(ground, draft=Draft())
    gateways = offering(session, seen, undo.draft)
    gateways.take_back(decided[0].service.belongs_to, [*seen.services.values()])
    for one in decided:
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
