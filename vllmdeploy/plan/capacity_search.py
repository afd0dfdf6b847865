"""The divisions of a model over cards that vLLM accepts, the smallest that fits first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vllmdeploy.plan.capacity import Assessment, Verdict, Wanted, assess, refusal
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.tools.safetensors import Weights

Division = tuple[int, int]
"""Tensor and pipeline parallel size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Cards that are alike: as many on each host, the smallest one's memory."""

    per_host: int
    memory_mib: int
    hosts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One division and what comes of it; `hosts`: those that the ranks of a stage lie on."""

    found: Assessment
    memory_mib: int
    hosts: int

    @property
    def division(self) -> Division:
        return self.found.wanted.tensor_parallel, self.found.wanted.pipeline_parallel

    @property
    def cost(self) -> tuple[bool, int, int]:
        """Tensor parallel over hosts is the slowest; then fewer cards are better, and stages."""
        tensor, pipeline = self.division
        return self.hosts > 1, tensor * pipeline, pipeline


def inside_hosts(shape: ModelShape, cards: Cards) -> Iterator[Division]:
    """Those that use whole hosts: tensor parallel inside one, pipeline across."""
    for pipeline in range(1, cards.hosts + 1):
        for tensor in range(1, cards.per_host + 1):
            whole = pipeline == 1 or tensor * 2 > cards.per_host
            if whole and not refusal(shape, tensor, pipeline):
                yield tensor, pipeline


def over_hosts(shape: ModelShape, cards: Cards) -> Iterator[Division]:
    """Those with tensor parallel over several hosts, of which each gives as many cards."""
    for pipeline in range(1, cards.hosts // 2 + 1):
        for tensor in range(cards.per_host + 1, cards.per_host * cards.hosts // pipeline + 1):
            if refusal(shape, tensor, pipeline):
                continue
            if 0 < hosts_of(tensor, cards) * pipeline <= cards.hosts:
                yield tensor, pipeline


def hosts_of(tensor: int, cards: Cards) -> int:
    """The fewest hosts that can give so many cards in equal parts; 0 where none can."""
    able = (
        hosts
        for hosts in range(1, cards.hosts + 1)
        if tensor % hosts == 0 and tensor // hosts <= cards.per_host
    )
    return next(able, 0)


def divisions(shape: ModelShape, cards: Cards) -> Iterator[Division]:
    yield from inside_hosts(shape, cards)
    yield from over_hosts(shape, cards)


def ways(
    shape: ModelShape,
    weights: Weights,
    kinds: Iterable[Cards],
    wanted: Wanted,
    measured: Mapping[Division, int] | None = None,
) -> tuple[Way, ...]:
    """Over hosts only where no way inside them holds what is wanted. `measured`: what an engine of
    a division had before."""
    before, kinds = measured or {}, tuple(kinds)
    found: dict[tuple[int, Division], Way] = {}
    for choose in (inside_hosts, over_hosts):
        for cards in kinds:
            for division in choose(shape, cards):
                if (cards.memory_mib, division) in found:
                    continue
                tensor, pipeline = division
                found[cards.memory_mib, division] = Way(
                    found=assess(
                        shape,
                        weights,
                        cards.memory_mib,
                        replace(wanted, tensor_parallel=tensor, pipeline_parallel=pipeline),
                        measured=before.get(division),
                    ),
                    memory_mib=cards.memory_mib,
                    hosts=hosts_of(tensor, cards),
                )
        if any(one.found.verdict is Verdict.FITS for one in found.values()):
            break
    return tuple(found.values())


def suggested(
    shape: ModelShape, weights: Weights, cards: Cards, wanted: Wanted
) -> Assessment | None:
    """The fewest cards on which it fits; else with a shorter context; else tightly; or nothing.
    Of ways that end alike those with tensor parallel inside a host come first."""
    usable = [
        one for one in ways(shape, weights, [cards], wanted) if one.found.verdict is not Verdict.NOT
    ]
    best = min(usable, key=_order, default=None)
    return best.found if best else None


def _order(way: Way) -> tuple[int, tuple[bool, int, int]]:
    return list(Verdict).index(way.found.verdict), way.cost
