"""The divisions of a model over cards that vLLM accepts, the smallest that fits first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vllmdeploy.plan.capacity import Assessment, Verdict, Wanted, assess, refusal
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.tools.safetensors import Weights

Division = tuple[int, int]
"""Tensor and pipeline parallel size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Cards of one group: as many on each host, the smallest one's memory."""

    per_host: int
    memory_mib: int
    hosts: int = 1


def divisions(shape: ModelShape, cards: Cards) -> Iterator[Division]:
    """Those that use whole hosts: tensor parallel inside one, pipeline across."""
    for pipeline in range(1, cards.hosts + 1):
        for tensor in range(1, cards.per_host + 1):
            whole = pipeline == 1 or tensor * 2 > cards.per_host
            if whole and not refusal(shape, tensor, pipeline):
                yield tensor, pipeline


def ways(
    shape: ModelShape,
    weights: Weights,
    cards: Cards,
    wanted: Wanted,
    measured: Mapping[Division, int] | None = None,
) -> tuple[Assessment, ...]:
    """What comes of each division. `measured`: what an engine of that division had before."""
    before = measured or {}
    return tuple(
        assess(
            shape,
            weights,
            cards.memory_mib,
            replace(wanted, tensor_parallel=tensor, pipeline_parallel=pipeline),
            measured=before.get((tensor, pipeline)),
        )
        for tensor, pipeline in divisions(shape, cards)
    )


def suggested(
    shape: ModelShape, weights: Weights, cards: Cards, wanted: Wanted
) -> Assessment | None:
    """The fewest cards on which it fits; else with a shorter context; else tightly; or nothing."""
    found = ways(shape, weights, cards, wanted)
    usable = [one for one in found if one.verdict is not Verdict.NOT]
    return min(usable, key=lambda one: (list(Verdict).index(one.verdict), *cost(one)), default=None)


def cost(one: Assessment) -> tuple[int, int]:
    """The cards that it takes; of as many, fewer stages are better."""
    wanted = one.wanted
    return wanted.tensor_parallel * wanted.pipeline_parallel, wanted.pipeline_parallel
