"""Whether a service's model has room on the cards it is to run on, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.core.card import Card
from vllmdeploy.plan.capacity import DEFAULT_UTILISATION, Assessment, Wanted, assess
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.plan.capacity_search import Cards, Division, divisions
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service_ranks import Placement
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.tools.safetensors import Weights
from vllmdeploy.tools.vllm import flag_of, normal
from vllmdeploy.tools.vllm_measured import Conditions, Measured

NOWHERE: Placement = {}
# Where parts of a model lie in the host's memory, our sums do not hold.
_ELSEWHERE = ("--cpu-offload-gb", "--kv-offloading-size", "--offload-group-size")
# What plain weights shrink to while they are loaded by a method of vLLM's own.
_SHRUNK = {"fp8": 2, "int8_per_channel_weight_only": 2, "bitsandbytes": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A model on cards of a group, the smallest of which has `memory_mib`. `kinds`: all that the
    group has, which are `total`; `measured`: what engines like it had there, by their division."""

    shape: ModelShape
    weights: Weights
    wanted: Wanted
    memory_mib: int
    kinds: tuple[Cards, ...]
    total: int
    conditions: Conditions
    measured: Mapping[Division, int]
    found: Assessment

    @property
    def division(self) -> Division:
        return self.wanted.tensor_parallel, self.wanted.pipeline_parallel


def room_for(
    asked: ServiceWanted,
    found: FoundServices,
    shape: ModelShape | None,
    tensor_parallel: int,
    method: str = "",
    placement: Placement = NOWHERE,
) -> Room | None:
    """None: nothing can be said. On processors the engine's own setting decides."""
    kinds, weights = kinds_of(found.members), found.weights
    offloaded = any(normal(word) in _ELSEWHERE for word in asked.arguments)
    if shape is None or weights is None or not kinds or offloaded or not tensor_parallel:
        return None
    weights = _shrunk(weights, method)
    wanted = _wanted(asked, tensor_parallel)
    cards = [card for one in _having(found.members) for card in one.share.cards]
    placed = _placed(found.members, placement)
    conditions = _conditions(asked, found, weights, wanted, method, placed or cards)
    memory = smallest(found.members, placement)
    own = found.measured.get(conditions.key)
    return Room(
        shape=shape,
        weights=weights,
        wanted=wanted,
        memory_mib=memory,
        kinds=kinds,
        total=len(cards),
        conditions=conditions,
        measured=_measured(found.measured, conditions, shape, kinds),
        found=assess(shape, weights, memory, wanted, measured=own.available if own else None),
    )


def _measured(
    before: Mapping[str, Measured],
    conditions: Conditions,
    shape: ModelShape,
    kinds: Sequence[Cards],
) -> dict[Division, int]:
    """Of cards that differ it is not known which of them had this."""
    if not before or len({one.memory_mib for one in kinds}) > 1:
        return {}
    keys = {
        (tensor, pipeline): replace(
            conditions, tensor_parallel=tensor, pipeline_parallel=pipeline
        ).key
        for one in kinds
        for tensor, pipeline in divisions(shape, one)
    }
    return {one: before[key].available for one, key in keys.items() if key in before}


def as_measured(
    asked: ServiceWanted, found: FoundServices, room: tuple[ModelShape, Weights], division: Division
) -> Assessment | None:
    """For one (tensor, pipeline) division, where an engine like it has said what it had."""
    shape, weights = room
    tensor, pipeline = division
    asked = replace(asked, pipeline_parallel=pipeline)
    known = room_for(asked, replace(found, weights=weights), shape, tensor)
    return known.found if known and known.conditions.key in found.measured else None


def cards_of(members: Sequence[Member]) -> Cards | None:
    """What every host of the group has at least; None where a tool does not say."""
    return next(iter(kinds_of(members)), None)


def kinds_of(members: Sequence[Member]) -> tuple[Cards, ...]:
    """Cards with at least so much memory, on hosts with at least so many of them; what all have
    comes first. Where Ray chooses the cards nobody can count on more than the smallest has."""
    having = _having(members)
    memory = [[card.memory_total_mib or 0 for card in one.share.cards] for one in having]
    known = sorted({size for host in memory for size in host}, reverse=True)
    if not known or not known[-1]:
        return ()
    # Drivers differ in some MiB.
    sizes = sorted({round(size / 1024): size for size in known}.values())
    kinds: list[Cards] = []
    for least in sizes if having[0].executor == "mp" else sizes[:1]:
        counts = [sum(size >= least for size in host) for host in memory]
        kinds += (
            Cards(per_host=many, memory_mib=least, hosts=sum(count >= many for count in counts))
            for many in sorted(set(counts) - {0})
        )
    return tuple(kinds)


def _having(members: Sequence[Member]) -> Sequence[Member]:
    return [one for one in members if one.share.cards and one.accelerator.name != "cpu"]


def smallest(members: Sequence[Member], placement: Placement) -> int:
    """MiB of the card that decides. Nowhere placed: what can be counted on at best."""
    placed = [card.memory_total_mib or 0 for card in _placed(members, placement)]
    return min(placed, default=max((one.memory_mib for one in kinds_of(members)), default=0))


def _placed(members: Sequence[Member], placement: Placement) -> Sequence[Card]:
    """As far as the hosts are there and have these cards."""
    return [
        card
        for one in _having(members)
        for card in one.share.cards
        if card.index in placement.get(one.name, ())
    ]


def _wanted(asked: ServiceWanted, tensor_parallel: int) -> Wanted:
    words = asked.arguments
    eager = any(normal(word) == "--enforce-eager" for word in words)
    cache = value_of(words, "--kv-cache-dtype") or "auto"
    return Wanted(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=asked.pipeline_parallel,
        utilisation=(
            _real(value_of(words, "--gpu-memory-utilization"))
            or asked.gpu_memory_utilization
            or DEFAULT_UTILISATION
        ),
        length=_whole(value_of(words, "--max-model-len")) or asked.max_model_len,
        cache_value_bytes=1 if cache.startswith("fp8") else 2,
        batched_tokens=(
            _whole(value_of(words, "--max-num-batched-tokens")) or asked.max_num_batched_tokens
        ),
        sequences=_whole(value_of(words, "--max-num-seqs")) or asked.max_num_seqs,
        eager=eager,
    )


def value_of(words: Sequence[str], flag: str) -> str:
    """What the user's own flags give it, which come last and so win."""
    value = ""
    for place, word in enumerate(words):
        if normal(word) == flag:
            after = words[place + 1] if place + 1 < len(words) else ""
            value = word.partition("=")[2] if flag_of(word) != word else after
    return value


def _whole(text: str) -> int | None:
    """A count as vLLM takes it, `32k` and `32K` included; None for what is none."""
    factors = {"k": 1000, "K": 1024, "m": 1_000_000, "M": 1024**2}
    factor = factors.get(text[-1:], 1)
    number = _real(text[:-1] if factor > 1 else text)
    return int(number * factor) if number and number > 0 else None


def _real(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shrunk(weights: Weights, method: str) -> Weights:
    factor = _SHRUNK.get(method, 1)
    if factor == 1:
        return weights
    tensors = tuple(replace(one, size=one.size // factor) for one in weights.tensors)
    return replace(weights, total_bytes=weights.total_bytes // factor, tensors=tensors)


def _conditions(
    asked: ServiceWanted,
    found: FoundServices,
    weights: Weights,
    wanted: Wanted,
    method: str,
    cards: Iterable[Card],
) -> Conditions:
    host = found.head.found
    inside = host.contents.vllm if host.contents else ""
    image = host.image.short if host.image else f"vllm-{inside}"
    flags = (wanted.batched_tokens, wanted.sequences, wanted.eager, wanted.cache_value_bytes)
    return Conditions(
        image=image,
        card="+".join(sorted({card.name for card in cards})),
        model=asked.model.rstrip("/").rpartition("/")[2],
        weights=weights.total_bytes,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        utilisation=wanted.utilisation,
        settings="-".join(map(str, (*flags, method))),
    )
