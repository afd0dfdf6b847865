"""`instances start`, `stop`, `restart`: vLLM servers outside Ray, each on cards of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllmdeploy.core.plan import Plan
from vllmdeploy.effects.execute import Outcome
from vllmdeploy.errors import UsageError
from vllmdeploy.plan import instances_steps as steps
from vllmdeploy.plan.instances_decide import Instances, decide_instances
from vllmdeploy.plan.instances_mps import daemons
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.plan.instances_steps import Sites
from vllmdeploy.plan.instances_wanted import (
    FoundInstances,
    InstancesWanted,
    asked_of,
    instances_of,
    slot_of,
)
from vllmdeploy.plan.service import model_folder, service_name
from vllmdeploy.plan.service_gateways import Gateways
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows import cluster, service
from vllmdeploy.workflows.instances_look import Looked, look
from vllmdeploy.workflows.instances_sites import beside, sites_of
from vllmdeploy.workflows.service_keys import Keys
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancesPlan:
    """Steps for the instances of one name, what to show once, and what the way back needs."""

    plan: Plan
    name: str
    keys: Keys
    address: str
    looked: Looked
    started: tuple[Instance, ...] = ()


def decide_start(session: Session, asked: InstancesWanted) -> InstancesPlan:
    """What is missing of the wanted instances, behind the gateway; one that fails harms none."""
    folder, shares = model_folder(session.wanted, asked.engine), asked.per_card > 1
    name = service_name(asked.engine)
    looked = look(session, model=folder, hosts=asked.hosts, mps=shares, of=name)
    return decide_found(session, asked, looked)


def decide_found(session: Session, asked: InstancesWanted, looked: Looked) -> InstancesPlan:
    """The same for those who have looked already."""
    decided = decide_instances(session.wanted, asked, looked.found, beside=beside(session))
    return _brought(session, looked, decided)


def _brought(session: Session, looked: Looked, decided: Instances) -> InstancesPlan:
    sites = sites_of(session, looked.found)
    for note in (*map(str, (one.slot for one in decided.of)), *decided.notes):
        sites.draft.note(note)
    first = {one.member.name: daemons(sites.draft, one) for one in decided.crowds}
    ready = steps.bring_all(sites, decided.of, first)
    services = [one.service for one in decided.of]
    others = _others(looked.found, {one.name for one in services})
    gateways = _offering(session, looked, sites).routing((*others, *services))
    gateways.up_at_once(
        [*looked.seen.services.values()],
        "new instances",
        needs=(),
        then=[one for one in services if one.name in ready],
        after=tuple(ready.values()),
    )
    return InstancesPlan(
        plan=sites.draft.finished(),
        name=decided.name,
        keys=looked.seen.keys,
        address=looked.seen.address,
        looked=looked,
        started=tuple(one for one in decided.of if one.service.name in ready),
    )


def way_back(session: Session, decided: InstancesPlan, applied: cluster.Applied) -> Plan:
    """What did not come up leaves nothing behind; what did goes on."""
    done = {one.step.key: one.outcome for one in applied.outcomes}
    failed = [
        one
        for one in decided.started
        if done.get(f"{one.slot.host}: await instance {one.service.name}") is not Outcome.DONE
    ]
    if not failed:
        return Plan()
    sites = sites_of(session, decided.looked.found)
    for one in failed:
        created = done.get(f"{one.slot.host}: create {one.node.name}")
        steps.undo(sites, one, made=created is Outcome.DONE)
    lost = {one.service.name for one in failed}
    left = _others(decided.looked.found, lost)
    left += tuple(one.service for one in decided.started if one not in failed)
    known = {one.name: one for one in left}
    gateways = _offering(session, decided.looked, sites).routing(tuple(known.values()), anew=True)
    services = [*decided.looked.seen.services.values()]
    gateways.route(services, "without those that did not start", ())
    return sites.draft.finished()


def decide_stop(session: Session, name: str, numbers: Sequence[int]) -> InstancesPlan:
    """No new requests, those at work end, then each of them does."""
    looked = look(session)
    ending = chosen(looked.found, name, numbers)
    sites = sites_of(session, looked.found)
    needs = _withdrawn(session, looked, sites, ending, name)
    for one in ending:
        steps.end(sites, one, "instances stop", needs)
    return _about(session, looked, sites, name)


def decide_restart(
    session: Session, name: str, numbers: Sequence[int], changes: Mapping[str, Any]
) -> InstancesPlan:
    """One after another, with the settings of now: the others answer meanwhile."""
    first = look(session)
    again = chosen(first.found, name, numbers)
    before = asked_of(again[0])
    asked = replace(before, engine=replace(before.engine, **changes))
    folder, shares = model_folder(session.wanted, asked.engine), asked.per_card > 1
    looked = look(session, model=folder, mps=shares)
    anew = decide_instances(session.wanted, asked, looked.found, beside=beside(session), anew=True)
    sites = sites_of(session, looked.found)
    needs = tuple(key for one in anew.crowds for key in daemons(sites.draft, one))
    wanted = {one.service.name: one for one in anew.of}
    for one in again:
        out = _withdrawn(session, looked, sites, [one], one.name, needs)
        gone = steps.end(sites, one, "instances restart", out, forget=False)
        needs = (steps.bring_anew(sites, wanted[one.name], gone),)
    gateways = _offering(session, looked, sites)
    gateways = gateways.routing(instances_of(looked.found.stored), anew=True)
    services = [*looked.seen.services.values()]
    gateways.up_at_once(
        services,
        "they are back",
        needs=needs,
        then=[wanted[one.name].service for one in again],
        after=needs,
    )
    return _about(session, looked, sites, name)


def _about(session: Session, looked: Looked, sites: Sites, name: str) -> InstancesPlan:
    return InstancesPlan(
        plan=sites.draft.finished(),
        name=name,
        keys=looked.seen.keys,
        address=looked.seen.address,
        looked=looked,
    )


def chosen(found: FoundInstances, name: str, numbers: Sequence[int]) -> tuple[Service, ...]:
    there = named(found, name)
    known = {slot_of(one).number: one for one in there}
    missing = [number for number in numbers if number not in known]
    if missing:
        having = ", ".join(map(str, sorted(known)))
        raise UsageError(f"{name} has no instance {missing[0]}", hint=f"it has {having}")
    return tuple(known[number] for number in numbers) if numbers else there


def named(found: FoundInstances, name: str) -> tuple[Service, ...]:
    there = found.named(name)
    if not there:
        known = ", ".join(sorted({one.belongs_to for one in found.instances})) or "none"
        raise UsageError(
            f"there are no instances of {name}", hint=f"there are instances of: {known}"
        )
    return there


def _withdrawn(
    session: Session,
    looked: Looked,
    sites: Sites,
    gone: Sequence[Service],
    subject: str,
    needs: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """The gateway sends these nothing new, if there is one."""
    if not any(looked.seen.fleet.values()):
        return needs
    left = _others(looked.found, {one.name for one in gone})
    gateways = _offering(session, looked, sites).routing(left)
    services = [*looked.seen.services.values()]
    return gateways.withdraw(replace(gone[0], name=subject), services, needs)


def _others(found: FoundInstances, besides: set[str]) -> tuple[Service, ...]:
    return tuple(one for one in instances_of(found.stored) if one.name not in besides)


def _offering(session: Session, looked: Looked, sites: Sites) -> Gateways:
    return service.offering(session, looked.seen, sites.draft)
