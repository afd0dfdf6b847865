"""One placed instance, complete: its spec, its engine's command line, its node."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from vllmdeploy.core.spec import NodeSpec
from vllmdeploy.plan.cards import RayShare
from vllmdeploy.plan.instances import Slot
from vllmdeploy.plan.instances_mps import Seat, crowd, seat
from vllmdeploy.plan.instances_room import share_of
from vllmdeploy.plan.instances_wanted import FoundInstances, InstancesWanted, document, node_name
from vllmdeploy.plan.node import QUIET, WARDEN_RESERVE_S, Member, proxies
from vllmdeploy.plan.service import engine_of, names_of
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_engine import START_LIMIT_S, EngineFile, argv, canary
from vllmdeploy.tools.vllm_services import Service

_GENERATION = "VLLMDEPLOY_GENERATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance decided: its spec on the head, and the node that runs it on its host."""

    service: Service
    slot: Slot
    file: EngineFile
    node: NodeSpec
    member: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all instances of one name share. `beside`: the host whose engines listen on loopback,
    because the only gateway is there too."""

    name: str
    asked: InstancesWanted
    folder: str
    method: str
    slots: tuple[Slot, ...] = ()
    beside: str = ""


def instance(wanted: Wanted, common: Common, found: FoundInstances, slot: Slot) -> Instance:
    member = _with_cards(found.member(slot.host), slot)
    service = _service(common, found, member, slot)
    shared = _shared(wanted, common, found, slot)
    vllm = found.vllm.get(slot.host, Vllm())
    file = _file(wanted, common, vllm, member, service, slot, shared)
    return Instance(
        service=service,
        slot=slot,
        file=file,
        node=replace(_node(wanted, member, service, file), mps=shared.door),
        member=member,
    )


def _shared(wanted: Wanted, common: Common, found: FoundInstances, slot: Slot) -> Seat:
    """What it is told because others have the same cards."""
    engine, host = common.asked.engine, found.member(slot.host)
    total = engine.gpu_memory_utilization
    crowded = crowd(wanted.cluster, common.asked.sharing, host, common.slots, found.mps, total)
    in_container = wanted.runtime == "docker"
    is_one = crowded is not None and slot in crowded.slots
    return seat(crowded, slot, in_container=in_container) if crowded and is_one else Seat()


def _with_cards(member: Member, slot: Slot) -> Member:
    """The host with nothing but the instance's own cards, as its node is to see it."""
    there = member.found.cards.cards
    own = tuple(card for card in there if card.index in slot.cards)
    share = RayShare(cards=own, declared=len(own), all_of_them=len(own) == len(there))
    return replace(member, share=share, token=False)


def _service(common: Common, found: FoundInstances, member: Member, slot: Slot) -> Service:
    own, engine = f"{common.name}-{slot.number}", common.asked.engine
    before = found.stored.get(own)
    return Service(
        name=own,
        replica_of=common.name,
        model=common.folder.rpartition("/")[2],
        names=names_of(common.name, engine, common.folder),
        port=slot.port,
        host="127.0.0.1" if member.name == common.beside else member.place.ip,
        group=member.found.host.group,
        tensor_parallel=engine.tensor_parallel,
        executor="mp",
        task=engine.task,
        max_num_seqs=engine.max_num_seqs or 0,
        generation=before.service.generation if before and before.service else 1,
        head=member.name,
        asked=document(common.asked, slot),
    )


def _file(
    wanted: Wanted,
    common: Common,
    vllm: Vllm,
    member: Member,
    service: Service,
    slot: Slot,
    shared: Seat,
) -> EngineFile:
    asked = common.asked.engine
    flags = (*member.accelerator.engine_flags(member.share.cards), *shared.arguments)
    engine = replace(
        asked,
        gpu_memory_utilization=share_of(asked, slot),
        arguments=(*flags, *asked.arguments),
    )
    line = argv(engine_of(engine, service, common.folder, common.method), vllm)
    if wanted.runtime != "docker":
        line = (wanted.python, *line[1:])
    return EngineFile(
        name=service.name,
        argv=line,
        environment={
            # `-m` would import what lies in the folder that it happens to be started in.
            "PYTHONSAFEPATH": "1",
            _GENERATION: str(service.generation),
            **member.accelerator.instance_environment,
            **shared.environment,
        },
        url=service.url,
        canary=canary(service.task, service.names[0]),
        needs_ray=False,
        service=service.document(),
    )


def _node(wanted: Wanted, member: Member, service: Service, file: EngineFile) -> NodeSpec:
    route, body = canary(service.task, service.names[0])
    return NodeSpec(
        name=node_name(wanted.cluster, service.name),
        cluster=wanted.cluster,
        group=member.found.host.group,
        role="instance",
        host=member.name,
        ip=member.place.ip,
        command=file.argv,
        probes=(
            *("--start-limit", f"{START_LIMIT_S:g}"),
            *("--health-url", f"{service.url}/health", "--metrics-url", f"{service.url}/metrics"),
            *("--canary-url", f"{service.url}{route}", "--canary-body", json.dumps(body)),
        ),
        service=service.belongs_to,
        environment={**file.environment, **QUIET, **proxies(member), **wanted.environment},
        cards=tuple(card.index for card in member.share.cards),
        package=wanted.package,
        generation=service.generation,
        stop_limit_s=wanted.drain_s + WARDEN_RESERVE_S,
    )
