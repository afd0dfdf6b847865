"""What a host has for instances: free cards, ports with their owners, memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllmdeploy.errors import UsageError
from vllmdeploy.plan import capacity, images, preflight
from vllmdeploy.plan.capacity_model import parse_config
from vllmdeploy.plan.cards import ledger
from vllmdeploy.plan.instances import Room, Slot
from vllmdeploy.plan.instances_wanted import FoundInstances, slot_of
from vllmdeploy.plan.mps_share import each_of
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service_wanted import ServiceWanted
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.safetensors import Weights
from vllmdeploy.tools.vllm_model import FoundModel

_GIB = 2**30


def room_of(wanted: Wanted, member: Member, found: FoundInstances) -> Room:
    """Cards that a stored instance has are promised, also while it does not run."""
    promised = {
        index: f"instance {one.name}"
        for one in found.instances
        if one.head == member.name
        for index in slot_of(one).cards
    }
    cards = (
        replace(one, holder=one.holder or promised.get(one.card.index, ""))
        for one in ledger(member.found)
    )
    cardless = member.found.cards.vendor == "cpu"
    return Room(
        host=member.name,
        cards=tuple(cards),
        taken_ports=_ports(wanted, member, found),
        cardless=cardless,
        seated=sum(one.head == member.name for one in found.instances) if cardless else 0,
    )


def _ports(wanted: Wanted, member: Member, found: FoundInstances) -> dict[int, str]:
    """Who has which port: first what our own settings and specs say, then who listens."""
    head = member.found.host.head
    rays = wanted.ports.of_head if head else wanted.ports.of_worker
    ours = {port: f"port {port} is one of Ray's (choose others in config.env)" for port in rays}
    if member.name == found.lead and found.gateway_port:
        port = found.gateway_port
        ours[port] = f"port {port} is the gateway's (API_PORT)"
    for one in (*found.services, *found.instances):
        if one.head == member.name:
            ours[one.port] = f"port {one.port} is that of {one.name}"
    listeners = {
        one.port: f"{one} (not ended: it is not ours)" for one in reversed(member.found.listeners)
    }
    return {**listeners, **ours}


def host_reasons(wanted: Wanted, member: Member) -> Iterable[str]:
    """Why nothing of ours can run on a host, whether or not Ray could."""
    found = member.found
    yield from preflight.of_host(wanted, found)
    if wanted.runtime == "docker":
        yield from images.of_image(found, "mp")
    elif found.contents is not None:
        yield from images.of_contents(f"{member.name}: {wanted.python}", found, "mp")


def share_of(asked: ServiceWanted, slot: Slot) -> float | None:
    """GPU_MEMORY_UTILIZATION is the card's, so those that share a card divide it; without cards,
    vLLM means the host's memory, which all of its instances share."""
    whole = asked.gpu_memory_utilization
    if whole is None and slot.sharing > 1:
        whole = capacity.DEFAULT_UTILISATION
    return None if whole is None else each_of(whole, slot.sharing)


def memory_reasons(
    asked: ServiceWanted,
    found: FoundInstances,
    slots: Sequence[Slot],
    folder: str,
) -> Iterable[str]:
    """The arithmetic of what does not fit, once for each host and size of card."""
    for slot in slots:
        member, model = found.member(slot.host), found.models.get(slot.host)
        if model is None or not model.weights:
            continue
        if member.found.cards.vendor == "cpu":
            yield from _host_memory(member, model, slots)
        else:
            share = share_of(asked, slot)
            yield from _card_memory(asked, member, model, slot, share, folder)


def _host_memory(member: Member, model: FoundModel, slots: Sequence[Slot]) -> Iterable[str]:
    count = sum(one.host == member.name for one in slots)
    memory = (member.found.cards.host_memory_mib or 0) << 20
    if memory and count * model.weights > memory:
        yield (
            f"{member.name}: {count} instances of {_gib(model.weights)} of weights each are"
            f" {_gib(count * model.weights)}; the host has {_gib(memory)}"
        )


def _card_memory(
    asked: ServiceWanted,
    member: Member,
    model: FoundModel,
    slot: Slot,
    share: float | None,
    folder: str,
) -> Iterable[str]:
    sizes = [
        card.memory_total_mib
        for card in member.found.cards.cards
        if card.index in slot.cards and card.memory_total_mib
    ]
    if not sizes:
        return
    try:
        shape = parse_config(model.config, where=f"{folder}/config.json")
    except UsageError:
        # Not every model that vLLM serves is a transformer that we can reckon with.
        return
    result = capacity.assess(
        shape,
        Weights(total_bytes=model.weights),
        min(sizes),
        capacity.Wanted(
            tensor_parallel=asked.tensor_parallel,
            utilisation=share or capacity.DEFAULT_UTILISATION,
            length=asked.max_model_len,
            batched_tokens=asked.max_num_batched_tokens,
            sequences=asked.max_num_seqs,
        ),
    )
    if result.verdict is capacity.Verdict.NOT:
        divided = f", divided by the {slot.sharing} that share it," if slot.sharing > 1 else ""
        yield (
            f"{member.name}: {result.reason}: an instance needs {_gib(result.need.usual)} on each"
            f" of its cards ({_gib(result.need.weights)} of it weights) and room for a cache;"
            f" GPU_MEMORY_UTILIZATION{divided} gives {share or capacity.DEFAULT_UTILISATION:g}"
            f" of {_gib(capacity.visible_bytes(min(sizes)))}, {_gib(result.budget)}"
        )


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
