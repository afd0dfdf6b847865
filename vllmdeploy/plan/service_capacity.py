"""Whether a service's model has room on the cards it is to run on, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.plan.capacity import DEFAULT_UTILISATION, Assessment, Wanted, assess
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.plan.capacity_search import Cards, Division, divisions
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.tools.safetensors import Weights
from vllmdeploy.tools.vllm import flag_of, normal
from vllmdeploy.tools.vllm_measured import Conditions, Measured

# Where parts of a model lie in the host's memory, our sums do not hold.
_ELSEWHERE = ("--cpu-offload-gb", "--kv-offloading-size", "--offload-group-size")
# What plain weights shrink to while they are loaded by a method of vLLM's own.
_SHRUNK = {"fp8": 2, "int8_per_channel_weight_only": 2, "bitsandbytes": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A model on the cards of a group: what decides whether it fits. `measured`: the cache that
    engines like it had before, by their division."""

    shape: ModelShape
    weights: Weights
    wanted: Wanted
    cards: Cards
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
) -> Room | None:
    """None: nothing can be said. On processors the engine's own setting decides."""
    cards, weights = cards_of(found.members), found.weights
    offloaded = any(normal(word) in _ELSEWHERE for word in asked.arguments)
    if shape is None or weights is None or cards is None or offloaded or not tensor_parallel:
        return None
    weights = _shrunk(weights, method)
    wanted = _wanted(asked, tensor_parallel)
    conditions = _conditions(asked, found, weights, wanted, method)
    division = (tensor_parallel, asked.pipeline_parallel)
    measured = _measured(found.measured, conditions, {division, *divisions(shape, cards)})
    return Room(
        shape=shape,
        weights=weights,
        wanted=wanted,
        cards=cards,
        conditions=conditions,
        measured=measured,
        found=assess(shape, weights, cards.memory_mib, wanted, measured=measured.get(division)),
    )


def _measured(
    before: Mapping[str, Measured], conditions: Conditions, of: Iterable[Division]
) -> dict[Division, int]:
    keys = {
        (tensor, pipeline): replace(
            conditions, tensor_parallel=tensor, pipeline_parallel=pipeline
        ).key
        for tensor, pipeline in (of if before else ())
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
    having = [one for one in members if one.share.cards and one.accelerator.name != "cpu"]
    memory = [card.memory_total_mib for one in having for card in one.share.cards]
    known = [size for size in memory if size]
    if not known or len(known) < len(memory):
        return None
    fewest = min(len(one.share.cards) for one in having)
    return Cards(per_host=fewest, memory_mib=min(known), hosts=len(having))


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
    asked: ServiceWanted, found: FoundServices, weights: Weights, wanted: Wanted, method: str
) -> Conditions:
    host = found.head.found
    inside = host.contents.vllm if host.contents else ""
    image = host.image.short if host.image else f"vllm-{inside}"
    flags = (wanted.batched_tokens, wanted.sequences, wanted.eager, wanted.cache_value_bytes)
    names = sorted({card.name for one in found.members for card in one.share.cards})
    return Conditions(
        image=image,
        card="+".join(names),
        model=asked.model.rstrip("/").rpartition("/")[2],
        weights=weights.total_bytes,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        utilisation=wanted.utilisation,
        settings="-".join(map(str, (*flags, method))),
    )
