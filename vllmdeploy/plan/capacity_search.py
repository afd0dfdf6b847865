"""The divisions of a model over cards that vLLM accepts, the smallest that fits first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vllmdeploy.plan.capacity import Assessment, Verdict, Wanted, assess, refusal
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.tools.safetensors import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Cards of one group: as many on each host, the smallest one's memory."""

    per_host: int
    memory_mib: int
    hosts: int = 1


def divisions(shape: ModelShape, cards: Cards) -> Iterator[tuple[int, int]]:
    """(tensor, pipeline) that use whole hosts: tensor parallel inside one, pipeline across."""
    for pipeline in range(1, cards.hosts + 1):
        for tensor in range(1, cards.per_host + 1):
            whole = pipeline == 1 or tensor * 2 > cards.per_host
            if whole and not refusal(shape, tensor, pipeline):
                yield tensor, pipeline


def suggested(
    shape: ModelShape, weights: Weights, cards: Cards, wanted: Wanted
) -> Assessment | None:
    """The fewest cards on which it fits; else with a shorter context; else tightly; or nothing."""
    found = [
        assess(
            shape,
            weights,
            cards.memory_mib,
            replace(wanted, tensor_parallel=tensor, pipeline_parallel=pipeline),
        )
        for tensor, pipeline in divisions(shape, cards)
    ]
    usable = [one for one in found if one.verdict is not Verdict.NOT]
    return min(usable, key=_order, default=None)


def _order(one: Assessment) -> tuple[int, int, int]:
    ranks = one.wanted.tensor_parallel * one.wanted.pipeline_parallel
    return list(Verdict).index(one.verdict), ranks, one.wanted.pipeline_parallel
