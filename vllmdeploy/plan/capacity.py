"""Will it fit, how long a context, how many users: a model on cards, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vllmdeploy.plan.capacity_cache import Cache, cache_of
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.plan.capacity_weights import rank_weights
from vllmdeploy.tools.safetensors import Weights

GIB = 2**30
MIB = 2**20
DEFAULT_UTILISATION = 0.92
# nvidia-smi counts what the driver keeps for itself, CUDA does not: 1.9 % of small cards, at most
# 640 MiB of large ones (seen: 467 of 24 GiB, 622 of 40 GiB, 598 of 48 GiB, 560 of 80 GiB).
_DRIVER_SHARE, _DRIVER_MOST = 0.019, 640 * MIB
_LARGE_CARD = 70 * GIB
_VERY_LARGE_CARD = 160 * GIB


class Verdict(Enum):
    """`SHORTER`: not with the model's own context, which nobody asked for, but with a part of it.
    `TIGHT`: it starts if all goes as usual, and has been seen not to."""

    FITS = "fits"
    SHORTER = "fits with a shorter context"
    TIGHT = "tight"
    NOT = "does not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the model is to run. None: what vLLM does by default."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    utilisation: float = DEFAULT_UTILISATION
    length: int | None = None
    cache_value_bytes: int = 2
    batched_tokens: int | None = None
    sequences: int | None = None
    eager: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """One rank's memory beside the cache, as usually seen and at worst, in bytes."""

    weights: int
    usual: int
    worst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The answer for one way to run a model. Lengths and users count with the worst case."""

    wanted: Wanted
    verdict: Verdict
    reason: str
    cache: Cache
    need: Need
    budget: int
    length: int
    longest: int
    users: float
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def available_usual(self) -> int:
        return max(0, self.budget - self.need.usual)

    @property
    def available_worst(self) -> int:
        return max(0, self.budget - self.need.worst)

    @property
    def kv_bytes_per_token(self) -> int:
        return self.cache.token_bytes

    @property
    def flags(self) -> str:
        length = min(self.length, self.longest) if self.longest else self.length
        return (
            f"--tensor-parallel-size {self.wanted.tensor_parallel} "
            f"--pipeline-parallel-size {self.wanted.pipeline_parallel} "
            f"--max-model-len {length} "
            f"--gpu-memory-utilization {self.wanted.utilisation:g}"
        )


def visible_bytes(card_mib: int) -> int:
    """What a program can see of a card whose tool states this size."""
    stated = card_mib * MIB
    return stated - min(int(stated * _DRIVER_SHARE), _DRIVER_MOST)


def refusal(shape: ModelShape, tensor_parallel: int, pipeline_parallel: int) -> str:
    """Why vLLM would not even begin with this division, or nothing."""
    if shape.heads % tensor_parallel:
        return (
            f"{shape.heads} attention heads cannot be divided by "
            f"tensor parallel size {tensor_parallel}"
        )
    more, less = max(shape.kv_heads, tensor_parallel), min(shape.kv_heads, tensor_parallel)
    if not shape.latent and more % less:
        return (
            f"{shape.kv_heads} KV heads and tensor parallel size {tensor_parallel} "
            "do not divide each other"
        )
    if pipeline_parallel > len(shape.layers.kinds):
        return f"{len(shape.layers.kinds)} layers cannot fill {pipeline_parallel} pipeline stages"
    return ""


def assess(
    shape: ModelShape,
    weights: Weights,
    card_mib: int,
    wanted: Wanted,
    *,
    measured: int | None = None,
) -> Assessment:
    """The verdict for cards of this size (the smallest one decides). `measured`: the cache memory
    that the same engine had when it last started, which is better than any sum."""
    visible = visible_bytes(card_mib)
    tokens = wanted.batched_tokens or _batched_tokens(visible)
    cache = cache_of(
        shape,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        value_bytes=wanted.cache_value_bytes,
        in_flight_tokens=tokens,
    )
    need = _need(shape, weights, wanted, tokens=tokens, visible=visible)
    budget = int(visible * wanted.utilisation)
    if measured is not None:
        need = Need(weights=need.weights, usual=budget - measured, worst=budget - measured)
    length = wanted.length or shape.longest
    refused = refusal(shape, wanted.tensor_parallel, wanted.pipeline_parallel)
    worst = max(0, budget - need.worst)
    usual = max(0, budget - need.usual)
    verdict, reason = _verdict(shape, cache, usual=usual, worst=worst, length=length)
    longest = 0 if refused else _longest(shape, cache, worst)
    if length > shape.longest:
        refused = f"the model's own longest context is {shape.longest} tokens"
    if verdict in (Verdict.NOT, Verdict.TIGHT) and wanted.length is None and longest:
        verdict = Verdict.SHORTER
    return Assessment(
        wanted=wanted,
        verdict=Verdict.NOT if refused else verdict,
        reason=refused or reason,
        cache=cache,
        need=need,
        budget=budget,
        length=length,
        longest=longest,
        users=0.0 if refused or not shape.cached else cache.concurrency(worst, length),
        exact=shape.exact and bool(weights.tensors),
        notes=_notes(shape, weights),
    )


def _longest(shape: ModelShape, cache: Cache, available: int) -> int:
    if not shape.cached:
        return shape.longest if available else 0
    return cache.longest(available, shape.longest)


def _verdict(
    shape: ModelShape, cache: Cache, *, usual: int, worst: int, length: int
) -> tuple[Verdict, str]:
    if usual == 0:
        return Verdict.NOT, "the weights and what vLLM needs beside them leave no room for a cache"
    if not shape.cached:
        return (Verdict.FITS, "") if worst else (Verdict.TIGHT, "little room beside the weights")
    if cache.concurrency(worst, length) >= 1:
        return Verdict.FITS, ""
    safe = cache.longest(worst, length)
    if cache.concurrency(usual, length) >= 1:
        reason = f"a context of {length} tokens has room only if nothing else grows"
        return Verdict.TIGHT, reason + (f"; {safe} is safe" if safe else "")
    most = cache.longest(usual, length)
    known = (
        f" ({safe} is safe)" if safe else f" ({most} only if nothing else grows)" if most else ""
    )
    return Verdict.NOT, f"one request of {length} tokens needs more cache than there is{known}"


def _batched_tokens(visible: int) -> int:
    """vLLM's default for its API server."""
    if visible >= _VERY_LARGE_CARD:
        return 16384
    return 8192 if visible >= _LARGE_CARD else 2048


def _need(
    shape: ModelShape, weights: Weights, wanted: Wanted, *, tokens: int, visible: int
) -> Need:
    """Fitted to what runs reported, see docs/capacity.md: activations grow with the tokens of a
    step and the MLP's width, logits with the sequences and the vocabulary."""
    held = rank_weights(
        weights,
        shape,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
    )
    sequences = wanted.sequences or (1024 if visible >= _LARGE_CARD else 256)
    width = 3 * shape.intermediate // wanted.tensor_parallel + 3 * shape.hidden
    logits = 3 * 4 * sequences * shape.vocabulary // wanted.tensor_parallel
    activations = 2 * tokens * width + logits
    ranks = wanted.tensor_parallel * wanted.pipeline_parallel
    libraries = int(0.2 * GIB) + (GIB if ranks > 1 else 0)
    images = 2 * GIB if shape.multimodal else 0
    graphs = 0 if wanted.eager else GIB // 2
    worst_graphs = 0 if wanted.eager else int(2.5 * GIB)
    usual = held + activations + libraries + images + graphs
    worst = held + activations * 3 // 2 + int(0.75 * GIB) + libraries + 2 * images + worst_graphs
    return Need(weights=held, usual=usual, worst=worst)


def _notes(shape: ModelShape, weights: Weights) -> tuple[str, ...]:
    notes = list(shape.notes)
    if not weights.tensors:
        notes.append("only the index is there: weights are taken as evenly divided")
    if shape.multimodal:
        notes.append("images and sound take memory that depends on their size: 2 to 4 GiB taken")
    if not shape.cached:
        notes.append("this kind of model keeps no KV cache")
    return tuple(notes)
