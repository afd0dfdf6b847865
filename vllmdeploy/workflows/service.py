"""`start-service`, `stop-service`, `restart-service`: one model served on a group's Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.execute import OnEvent, Outcome, Stop
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.instances_wanted import instances_of
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service import (
    DecidedService,
    decide_service,
    model_folder,
    service_name,
)
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import ExecutorChoice
from vllmdeploy.tools.vllm_engine import EngineState, Task
from vllmdeploy.tools.vllm_services import Service, stored
from vllmdeploy.workflows import cluster
from vllmdeploy.workflows.service_keys import Keys
from vllmdeploy.workflows.service_look import Seen, look
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """Steps, the service they are about, what to show once, and the way back if it fails.
    `address`: where the gateway is for other machines."""

    plan: Plan
    service: Service
    keys: Keys
    undo: Plan = field(default_factory=Plan)
    address: str = ""

    def gone_wrong(self, applied: cluster.Applied) -> bool:
        """Its engine did not come up. A gateway that failed is no reason to end a good engine."""
        key = f"{self.service.leader}: await service {self.service.name}"
        return any(
            one.step.key == key and one.outcome is Outcome.FAILED for one in applied.outcomes
        )


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
    ground, found = _ground(session, seen, group)
    asked = _placed(session, asked, found)
    kept = found.stored.get(service_name(asked))
    if kept and kept.service and ServiceWanted.stored(kept.service.asked) == asked:
        return _carried_on(session, seen, ground, found, kept.service)
    decided = decide_service(session.wanted, asked, found)
    written = steps.write(ground, decided.service.name, decided.file.content(), "not there")
    cause = "its engine loads and answers a canary"
    up = steps.await_answer(ground, decided.service, cause, (written,), fresh=True)
    steps.remember(ground, decided.service, decided.conditions, (up,))
    services = {**seen.services, decided.service.name: decided.service}
    offering(session, seen, ground.draft).up([*services.values()], "a new service", (up,))
    undo = replace(ground, draft=Draft())
    steps.remove(undo, decided.service.name, "it did not start", ranks=decided.service.placement)
    return ServicePlan(
        plan=ground.draft.finished(),
        service=decided.service,
        keys=seen.keys,
        undo=undo.draft.finished(),
        address=seen.address(session.lead.name),
    )


def _carried_on(
    session: Session, seen: Seen, ground: Ground, found: FoundServices, service: Service
) -> ServicePlan:
    """The same wish once more, as after Ctrl-C: what is left of it to do."""
    needs: tuple[str, ...] = ()
    state = found.engines.get(service.name) or EngineState()
    if state.state != "running":
        needs = (steps.await_answer(ground, service, state.words, (), fresh=True),)
    offering(session, seen, ground.draft).restore([*seen.services.values()], needs)
    return ServicePlan(
        plan=ground.draft.finished(),
        service=service,
        keys=seen.keys,
        address=seen.address(session.lead.name),
    )


def decide_stop(session: Session, name: str) -> ServicePlan:
    """No new requests, those at work end, then the engine does."""
    seen = look(session)
    found = seen.group_of(name)
    ground, _ = _ground(session, seen, found.head.found.host.group)
    before = found.stored[name].service
    needs: tuple[str, ...] = ()
    if before:
        others = [one for one in seen.services.values() if one.name != name]
        needs = _unrouted(session, seen, ground, before, others)
    service = before or Service(name=name, model="", names=(name,), port=0)
    steps.remove(ground, name, "stop-service", needs, ranks=service.placement)
    return ServicePlan(plan=ground.draft.finished(), service=service, keys=seen.keys)


def decide_restart(session: Session, name: str, changes: Mapping[str, Any]) -> ServicePlan:
    """The same service with the settings of now; the old one comes back if the new one fails."""
    first = look(session)
    kept = first.group_of(name).stored[name]
    if kept.service is None:
        raise UsageError(kept.problem, hint=f"`vllmdeploy stop-service {name}` removes the file")
    asked = replace(ServiceWanted.stored(kept.service.asked), name=name, **changes)
    seen = look(session, model_folder(session.wanted, asked))
    ground, found = _ground(session, seen, kept.service.group)
    decided = decide_service(session.wanted, _placed(session, asked, found), found, replaces=name)
    others = [one for one in seen.services.values() if one.name != name]
    drained = _unrouted(session, seen, ground, kept.service, others)
    before = kept.service.placement
    gone = steps.remove(ground, name, "restart-service", drained, ranks=before)
    written = steps.write(ground, name, decided.file.content(), "restart-service", gone)
    cause = "its engine loads and answers a canary"
    up = steps.await_answer(ground, decided.service, cause, (written,), fresh=True)
    back = replace(seen, fleet="")
    offering(session, back, ground.draft).up([*others, decided.service], "it is back", (up,))
    return ServicePlan(
        plan=ground.draft.finished(),
        service=decided.service,
        keys=seen.keys,
        undo=_way_back(session, back, ground, decided, kept.content, [*others, kept.service]),
        address=seen.address(session.lead.name),
    )


def _way_back(
    session: Session,
    seen: Seen,
    ground: Ground,
    decided: DecidedService,
    content: bytes,
    services: list[Service],
) -> Plan:
    name = decided.service.name
    back = replace(ground, draft=Draft())
    gone = steps.remove(back, name, "it did not start", ranks=decided.service.placement)
    written = steps.write(back, name, content, "the version before", gone)
    cause = "the version before answers"
    up = steps.await_answer(back, decided.service, cause, (written,), fresh=True)
    offering(session, seen, back.draft).up(services, "the version before", (up,))
    return back.draft.finished()


def _unrouted(
    session: Session, seen: Seen, ground: Ground, service: Service, others: list[Service]
) -> tuple[str, ...]:
    """The gateway sends it nothing new, and what it works on is done."""
    gateway = offering(session, seen, ground.draft)
    if not seen.fleet:
        return ()
    return (steps.drain(ground, service, (gateway.withdraw(service, others),)),)


def decide_up(session: Session, found: Mapping[str, FoundHost]) -> Plan:
    """The whole fleet: its Ray nodes, and where services are stored, those and their gateway."""
    plan = cluster.decide_up(session, found)
    heads = [found[host.name] for host in session.fleet.hosts if host.head]
    kept = [
        ask_one(session.shells[head.host.name], stored(head.access.layout.services), head.access)
        for head in heads
    ]
    return _with_services(session, look(session, found=found), plan) if any(kept) else plan


def _with_services(session: Session, seen: Seen, plan: Plan) -> Plan:
    if not seen.services:
        return plan
    draft = Draft(list(plan.steps), list(plan.notes))
    awaited: list[str] = []
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
        for service in group.services:
            state = group.engines.get(service.name) or EngineState(state="not running")
            content = group.stored[service.name].content
            written = steps.restore_ranks(ground, service.name, content, group.elsewhere)
            if before or written or state.state != "running":
                cause = "its spec is stored here" if before else state.words
                awaited.append(
                    steps.await_answer(ground, service, cause, (*before, *written), fresh=False)
                )
    offering(session, seen, draft).restore([*seen.services.values()], tuple(awaited))
    return draft.finished()


def _ground(session: Session, seen: Seen, group: str) -> tuple[Ground, FoundServices]:
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


def _placed(session: Session, asked: ServiceWanted, found: FoundServices) -> ServiceWanted:
    """Engines listen on loopback where the gateway is beside them, else on the fleet's address."""
    elsewhere = {*session.settings.gateway_hosts} - {session.lead.name, session.lead.address}
    beside = found.head.name == session.lead.name and not elsewhere
    return replace(asked, host="127.0.0.1" if beside else found.head.place.ip)


def offering(session: Session, seen: Seen, draft: Draft) -> Offering:
    head = next(
        group.head for group in seen.groups.values() if group.head.name == session.lead.name
    )
    ground = Ground(draft=draft, wanted=session.wanted, supervisor=session.supervisor, head=head)
    return Offering(
        ground=ground,
        gateway=seen.keys.gateway,
        package=session.package[0],
        fleet=seen.fleet,
        instances=instances_of(seen.instances),
    )


def undo(session: Session, decided: ServicePlan, what: str, on_event: OnEvent, stop: Stop) -> bool:
    """Whether the way back was gone to its end."""
    return not cluster.apply(session, decided.undo, f"{what}: undone", on_event, stop).failed
