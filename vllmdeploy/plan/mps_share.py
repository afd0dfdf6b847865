"""Several engines on one card: what each may take of it, and how it gets to the MPS daemon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor

from vllmdeploy.core.card import Card
from vllmdeploy.core.spec import Mount, MpsDoor
from vllmdeploy.plan.capacity import DEFAULT_UTILISATION
from vllmdeploy.plan.mps import card_scope
from vllmdeploy.tools import mps

ALL_REDUCE_OFF = "--disable-custom-all-reduce"
KV_CACHE_FLAG = "--kv-cache-memory-bytes"
_GIB = 1 << 30
# vLLM refuses to start below its weights and profile; a share that small is a slip of the pen.
_LEAST_SHARE = 0.02
MOST_CLIENTS = 48
"""Contexts on one card that every driver since Volta takes (60 with CUDA 13.1 and newer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one engine gets of a card that `workers` have together.

    `utilisation` is vLLM's own number for one engine; with `cache_bytes` it only bounds what the
    engine finds at its start. `percentage` None: the threads are not limited.
    """

    workers: int = 1
    utilisation: float = DEFAULT_UTILISATION
    cache_bytes: int | None = None
    percentage: int | None = None

    @property
    def engine_arguments(self) -> tuple[str, ...]:
        """Beside --gpu-memory-utilization, which an engine's spec has of its own."""
        cache = () if self.cache_bytes is None else (KV_CACHE_FLAG, str(self.cache_bytes))
        return (*((ALL_REDUCE_OFF,) if self.workers > 1 else ()), *cache)


def each_of(total: float, workers: int) -> float:
    """Rounded down, so that the sum never exceeds the total."""
    return floor(total / workers * 1000 + 1e-6) / 1000


def divided(
    workers: int,
    total: float | None,
    *,
    cache_bytes: int | None = None,
    percentage: int | None = None,
) -> Share:
    """The card's total divided by its engines.

    Threads: twice the even share, as NVIDIA advises, so that an idle neighbour's are not lost."""
    even = None if workers < 3 else max(1, 200 // workers)
    return Share(
        workers=workers,
        utilisation=each_of(DEFAULT_UTILISATION if total is None else total, workers),
        cache_bytes=cache_bytes,
        percentage=even if percentage is None else percentage,
    )


def arithmetic(share: Share, total: float | None, cards: Iterable[Card]) -> tuple[str, ...]:
    """One line for each size of card: how the total becomes what one engine has."""
    whole = DEFAULT_UTILISATION if total is None else total
    sizes = dict.fromkeys(card.memory_total_mib for card in cards)
    return tuple(_line(share, whole, size) for size in sizes if size)


def _line(share: Share, total: float, size_mib: int) -> str:
    engines = f"{share.workers} engine{'s' if share.workers > 1 else ''}"
    if share.cache_bytes is not None:
        caches = share.cache_bytes * share.workers / _GIB
        return (
            f"{engines} on a card of {size_mib:,} MiB: {share.workers} x"
            f" {share.cache_bytes / _GIB:.2f} GiB = {caches:.2f} GiB of KV cache,"
            f" weights beside that ({KV_CACHE_FLAG})"
        )
    return (
        f"{engines} on a card of {size_mib:,} MiB: {total:g} x {size_mib:,} ="
        f" {int(total * size_mib):,} MiB in all, / {share.workers} ="
        f" {int(share.utilisation * size_mib):,} MiB each"
        f" (--gpu-memory-utilization {share.utilisation:g})"
    )


def refusals(share: Share, total: float | None, cards: Iterable[Card]) -> Iterable[str]:
    """Why this many engines cannot have a card, with the arithmetic."""
    whole = DEFAULT_UTILISATION if total is None else total
    if share.utilisation < _LEAST_SHARE:
        yield (
            f"{share.workers} engines on a card get {whole:g} / {share.workers} ="
            f" {share.utilisation:g} of its memory each: too little for any model"
        )
    if share.workers > MOST_CLIENTS:
        yield f"{share.workers} engines on a card: MPS takes at most {MOST_CLIENTS} clients"
    for card in cards:
        size = card.memory_total_mib
        wanted = (share.cache_bytes or 0) * share.workers >> 20
        if size is not None and wanted > size:
            yield (
                f"card {card.index}: {share.workers} KV caches of {share.cache_bytes:,} bytes are"
                f" {wanted:,} MiB, and it has {size:,} MiB"
            )


def door(pipe: str, log: str, cards: Sequence[Card]) -> MpsDoor:
    """An engine that spans several cards needs the daemon that serves all of them."""
    if len(cards) != 1:
        return MpsDoor(pipe=pipe, log=log)
    scope = card_scope(pipe, log, cards[0])
    return MpsDoor(pipe=scope.pipe, log=scope.log)


def environment(entrance: MpsDoor, share: Share, *, partition: str = "") -> Mapping[str, str]:
    """An engine's variables. A partition takes the place of the percentage."""
    variables = {mps.PIPE_VARIABLE: entrance.pipe, mps.LOG_VARIABLE: entrance.log}
    if partition:
        variables[mps.PARTITION_VARIABLE] = partition
    elif share.percentage is not None:
        variables[mps.PERCENTAGE_VARIABLE] = str(share.percentage)
    return variables


def visible(cards: Sequence[Card], served: Sequence[Card]) -> str:
    """For an engine outside containers: its cards as its daemon numbers them, from 0."""
    order = [card.index for card in served]
    return ",".join(str(order.index(card.index)) for card in cards)


def mounts(entrance: MpsDoor) -> tuple[Mount, ...]:
    """The same paths inside and outside; a client writes into the daemon's pipes."""
    return tuple(Mount(path, path, writable=True) for path in (entrance.pipe, entrance.log))


ARGUMENTS = ("--ipc=host",)
"""Of `docker run`, beside the mounts: client and server share memory by the host's IPC."""


def container_uid(arguments: Sequence[str]) -> int | None:
    """Who the engines of containers run as: root, unless EXTRA_DOCKER_ARGS says otherwise in
    numbers; None where only the image knows that name."""
    given = [value for flag, value in pairwise(arguments) if flag in ("-u", "--user")]
    given += [one.partition("=")[2] for one in arguments if one.startswith(("--user=", "-u="))]
    if not given:
        return 0
    name = given[-1].partition(":")[0]
    return int(name) if name.isdecimal() else None
