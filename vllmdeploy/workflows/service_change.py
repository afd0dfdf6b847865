"""`restart-service` and `stop-service`: engines are replaced or end without a lost request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllmdeploy.core.plan import Plan
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.service import DecidedService, decide_service, model_folder
from vllmdeploy.plan.service_cards import await_cards, cards_by_ray, pool_of
from vllmdeploy.plan.service_replicas import beside, engines_of, free_replica, replica_of
from vllmdeploy.plan.service_rolling import Rolling, Turn, Version, downtime, order, way_back
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows.service import ServicePlan, ground_of, offering, placed
from vllmdeploy.workflows.service_look import Seen, look
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True)
class _Place:
    """Where turns are planned, and planned once more for the way back."""

    session: Session
    seen: Seen
    found: FoundServices

    def rolling(self, serving: Mapping[str, Service] | None = None) -> Rolling:
        ground, _ = ground_of(self.session, self.seen, self.found.head.found.host.group)
        gateways = offering(self.session, self.seen, ground.draft)
        return Rolling(
            ground=ground,
            gateways=gateways,
            serving=dict(self.seen.services if serving is None else serving),
            answering=gateways.running,
        )


def decide_stop(session: Session, name: str) -> ServicePlan:
    """No new requests, those at work end, then its engines do."""
    seen = look(session)
    found = seen.group_of(name)
    rolling = _Place(session, seen, found).rolling()
    engines = engines_of(found, name)
    needs: tuple[str, ...] = ()
    for engine in engines:
        needs = rolling.turn(Turn(before=_version(found, engine), after=None), _STOP, needs)
    if not engines:
        steps.remove(rolling.ground, name, _STOP)
    if given_back := cards_by_ray(found, engines):
        left = max(0, pool_of(found).in_use - given_back)
        await_cards(rolling.ground, name, left, needs)
    service = engines[0] if engines else Service(name=name, model="", names=(name,), port=0)
    return ServicePlan(plan=rolling.ground.draft.finished(), service=service, keys=seen.keys)


_STOP = "stop-service"
_RESTART = "restart-service"


def decide_restart(session: Session, name: str, changes: Mapping[str, Any]) -> ServicePlan:
    """The same service with the settings of now, one engine after another; those before come back
    if a new one fails."""
    first = look(session).group_of(name)
    engines = engines_of(first, name)
    if not engines:
        broken = first.stored[name]
        raise UsageError(broken.problem, hint=f"`vllmdeploy stop-service {name}` removes the file")
    before = ServiceWanted.stored(engines[0].asked)
    asked = replace(before, name=name, replica=1, **changes)
    seen = look(session, model_folder(session.wanted, asked))
    place = _Place(session, seen, seen.group_of(name))
    turns = _turns(session, placed(session, asked, place.found), place.found, name)
    running = {key: one.state == "running" for key, one in place.found.engines.items()}
    turns = order(turns, running)
    rolling = place.rolling()
    if note := downtime(turns, place.found, name):
        rolling.ground.draft.note(note)
    needs: tuple[str, ...] = ()
    for one in turns:
        needs = rolling.turn(one, _RESTART, needs)
    if not rolling.answering:
        rolling.gateways.up([*rolling.serving.values()], "it is back", needs)
    last = next(one.after for one in reversed(turns) if one.after)
    return ServicePlan(
        plan=rolling.ground.draft.finished(),
        service=last.service,
        keys=seen.keys,
        back=lambda outcomes: _back(place, turns, outcomes),
        address=seen.address,
    )


def _back(place: _Place, turns: tuple[Turn, ...], outcomes: Iterable[StepOutcome]) -> Plan:
    """What is to be done when a step has failed; nothing where none has."""
    done = {one.step.key: one.outcome for one in outcomes}
    if Outcome.FAILED not in done.values():
        return Plan()
    attempted = {key for key, one in done.items() if one is not Outcome.SKIPPED}
    return way_back(place.rolling, place.seen.services, turns, attempted)


def _turns(
    session: Session, asked: ServiceWanted, found: FoundServices, name: str
) -> tuple[Turn, ...]:
    engines = engines_of(found, name)
    if len(engines) == 1 and asked.replicas == 1:
        number = free_replica(found, name)
        try:
            beside_it = decide_service(session.wanted, replace(asked, replica=number), found)
        except PreflightRefused:
            pass  # too few free cards, or what is wrong with it anyway: told below
        else:
            old = _version(found, engines[0])
            return Turn(before=None, after=_decided(beside_it)), Turn(before=old, after=None)
    return _in_place(session, asked, found, engines)


def _in_place(
    session: Session, asked: ServiceWanted, found: FoundServices, engines: tuple[Service, ...]
) -> tuple[Turn, ...]:
    """Each engine makes room for its own next version."""
    kept, surplus = engines[: asked.replicas], engines[asked.replicas :]
    turns = [Turn(before=_version(found, one), after=None) for one in surplus]
    for engine in kept:
        mine = replace(asked, replica=replica_of(engine))
        decided = decide_service(session.wanted, mine, found, replaces=engine.name)
        turns.append(Turn(before=_version(found, engine), after=_decided(decided)))
        found = beside(found, decided)
    for _ in range(asked.replicas - len(kept)):
        number = free_replica(found, asked.name)
        decided = decide_service(session.wanted, replace(asked, replica=number), found)
        turns.append(Turn(before=None, after=_decided(decided)))
        found = beside(found, decided)
    return tuple(turns)


def _version(found: FoundServices, service: Service) -> Version:
    return Version(service=service, content=found.stored[service.name].content)


def _decided(decided: DecidedService) -> Version:
    return Version(service=decided.service, content=decided.file.content())
