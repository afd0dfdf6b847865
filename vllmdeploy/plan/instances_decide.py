"""From wanted instances and what was found to their specs, or every reason against at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan import capacity
from vllmdeploy.plan.instances import Placement, Ports, Shape, Slot, place
from vllmdeploy.plan.instances_mps import Crowd, crowd, notes, refusals
from vllmdeploy.plan.instances_node import Common, Instance, instance
from vllmdeploy.plan.instances_room import host_reasons, memory_reasons, room_of
from vllmdeploy.plan.instances_wanted import (
    FoundInstances,
    InstancesWanted,
    asked_of,
    node_name,
    slot_of,
)
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service import model_folder, model_of, service_name
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm_engine import free_flags, taken_flags
from vllmdeploy.tools.vllm_model import Quantization, own_method, quantization
from vllmdeploy.tools.vllm_services import Service, name_fault

_LONGEST_NODE_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """All of one name, those that were there before included."""

    name: str
    of: tuple[Instance, ...]
    notes: tuple[str, ...] = ()
    crowds: tuple[Crowd, ...] = ()
    """Those of one host that share cards, for each such host."""


def decide_instances(
    wanted: Wanted,
    asked: InstancesWanted,
    found: FoundInstances,
    *,
    beside: str = "",
    anew: bool = False,
) -> Instances:
    """`beside`: the host that has the only gateway; its engines need no other address. `anew`:
    those that are there take these settings over, where they are."""
    name = service_name(asked.engine)
    existing = found.named(name)
    members = meant(asked, found)
    placement = Placement() if anew else _placed(wanted, asked, found, members, existing)
    slots = (*map(slot_of, existing), *placement.slots)
    about_model = _about_model(wanted, asked, found, members)
    crowds = _crowds(wanted, asked, found, slots)
    reasons = (
        *_name(wanted, name, found),
        *(reason for one in members for reason in host_reasons(wanted, one)),
        *about_model.reasons,
        *_vllm(asked, found, members, about_model.method),
        *placement.reasons,
        *memory_reasons(asked.engine, found, slots, about_model.folder),
        *(reason for one in crowds for reason in refusals(one)),
    )
    if reasons:
        raise PreflightRefused(tuple(dict.fromkeys(reasons)))
    common = Common(
        name=name,
        asked=asked,
        folder=about_model.folder,
        method=about_model.method.method,
        slots=slots,
        beside=beside,
    )
    # What an instance keeps of the wish that placed it is what it was started with.
    kept = {} if anew else {slot_of(one): asked_of(one) for one in existing}
    decided = tuple(
        instance(wanted, replace(common, asked=kept.get(slot, asked)), found, slot)
        for slot in slots
    )
    arithmetic = (note for one in crowds for note in notes(one))
    return Instances(name=name, of=decided, notes=(*placement.notes, *arithmetic), crowds=crowds)


def _crowds(
    wanted: Wanted, asked: InstancesWanted, found: FoundInstances, slots: Sequence[Slot]
) -> tuple[Crowd, ...]:
    total = asked.engine.gpu_memory_utilization
    each = (
        crowd(wanted.cluster, asked.sharing, one, slots, found.mps, total) for one in found.members
    )
    return tuple(one for one in each if one)


def meant(asked: InstancesWanted, found: FoundInstances) -> tuple[Member, ...]:
    """The hosts that may get instances; spares wait for somebody to fail."""
    if asked.hosts:
        return tuple(one for one in found.members if one.name in asked.hosts)
    return tuple(one for one in found.members if not one.found.host.spare or one.stands_in_for)


def _placed(
    wanted: Wanted,
    asked: InstancesWanted,
    found: FoundInstances,
    members: Sequence[Member],
    existing: Sequence[Service],
) -> Placement:
    if existing and asked_of(existing[0]).engine != asked.engine:
        name = existing[0].belongs_to
        hint = f"`vllmdeploy instances restart {name}` takes other settings over"
        return Placement(reasons=(f"{name} has instances with other settings: {hint}",))
    missing = None if asked.count is None else asked.count - len(existing)
    if existing and (missing is None or missing == 0):
        return Placement()
    if missing is not None and missing < 0:
        name = existing[0].belongs_to
        return Placement(
            reasons=(
                f"{len(existing)} instances of {name} are there, {asked.count} are wanted:"
                f" `vllmdeploy instances stop {name} --number N` ends one",
            )
        )
    return place(
        Shape(count=missing, cards_each=asked.engine.tensor_parallel, per_card=asked.per_card),
        [room_of(wanted, one, found) for one in members],
        Ports(asked=asked.ports, usual=asked.usual_ports),
        numbers=[slot_of(one).number for one in existing],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    folder: str
    method: Quantization
    reasons: tuple[str, ...]


def _about_model(
    wanted: Wanted, asked: InstancesWanted, found: FoundInstances, members: Sequence[Member]
) -> _Model:
    folder = model_folder(wanted, asked.engine)
    first = next((one.name for one in members), "")
    there = found.models.get(first)
    shape, reasons = model_of(found.models, first, folder)
    tensor = asked.engine.tensor_parallel
    divided = capacity.refusal(shape, tensor, 1) if shape and tensor > 1 else ""
    methods = found.vllm[first].methods if first in found.vllm else ()
    own = own_method(there.config) if there else ""
    method = quantization(asked.engine.quantization, own, methods)
    why = (*reasons, *((divided,) if divided else ()))
    return _Model(folder=folder, method=method, reasons=why)


def _name(wanted: Wanted, name: str, found: FoundInstances) -> Iterable[str]:
    if fault := name_fault(name):
        yield f"{name!r} cannot be the name of instances: {fault}"
    longest = f"{node_name(wanted.cluster, name)}-999"
    if len(longest) > _LONGEST_NODE_NAME:
        yield f"{name}: too long a name for instances of cluster {wanted.cluster}: say --name"
    for service in found.services:
        base, _, number = service.name.rpartition("-")
        if base == name and number.isdecimal():
            yield f"a service is called {service.name}, as an instance would be: say --name"


def _vllm(
    asked: InstancesWanted, found: FoundInstances, members: Sequence[Member], method: Quantization
) -> Iterable[str]:
    yield from taken_flags(asked.engine.arguments)
    for member in members:
        vllm = found.vllm.get(member.name)
        if vllm is None:
            continue
        if vllm.problem:
            yield f"{member.name}: {vllm.problem}"
        else:
            yield from vllm.unknown(free_flags(asked.engine.arguments))
    # An image that cannot be asked has no methods, and that is said already.
    if method.refusal and all(not one.problem for one in found.vllm.values()):
        yield method.refusal
