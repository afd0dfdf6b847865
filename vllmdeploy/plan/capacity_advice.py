"""A model that has no room on its cards: why, and the ways out of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllmdeploy.plan.capacity import Assessment, Verdict, refusal
from vllmdeploy.plan.capacity_search import Way, ways
from vllmdeploy.plan.service_capacity import Room
from vllmdeploy.plan.service_ranks import Placement

_WORTH_IT = 4 / 3


def no_room(room: Room) -> Iterable[str]:
    """Why it cannot start, and what could; what is only tight is tried."""
    if refusal(room.shape, *room.division):
        return  # said by itself, with the divisions that work
    if lacks_room(room.found):
        yield f"{_why(room)}{_way_out(room)}"


def lacks_room(found: Assessment) -> bool:
    if found.verdict is Verdict.SHORTER:
        return found.cache.concurrency(found.available_usual, found.length) < 1
    return found.verdict is Verdict.NOT


def roomiest(places: Iterable[tuple[Placement, Room | None]]) -> tuple[Placement, Room | None]:
    """The first place where it fits, else where it is tight, else the first; where nothing can be
    said, none is better."""
    return min(places, key=lambda one: _lacking(one[1].found) if one[1] else 0)


def _lacking(found: Assessment) -> int:
    return 2 if lacks_room(found) else int(found.verdict is not Verdict.FITS)


def about_room(room: Room | None) -> tuple[str, ...]:
    """What is tried and has been seen not to start."""
    if room is None or room.found.verdict is not Verdict.TIGHT:
        return ()
    return (f"{room.conditions.model} is tight on its cards: {room.found.reason}",)


def _why(room: Room) -> str:
    found = room.found
    if found.length > room.shape.longest:
        return found.reason
    if not found.longest:
        return f"{_where(room)}: {found.reason}"
    whole = "" if room.wanted.length else "the model's whole context "
    length = f"{whole}({found.length} tokens)" if whole else f"{found.length} tokens"
    return f"{_where(room)}: no room for one request of {length}"


def _where(room: Room) -> str:
    wanted, gib = room.wanted, room.memory_mib / 1024
    ranks = wanted.tensor_parallel * wanted.pipeline_parallel
    cards = f"{ranks} cards" if ranks > 1 else "1 card"
    size = room.weights.total_bytes / 2**30
    return f"does not fit: {size:.1f} GiB of weights on {cards} of {gib:.0f} GiB"


def _way_out(room: Room) -> str:
    """The longest context that is safe here, and the division that holds what is wanted: else the
    one that costs least, and the one that holds most."""
    here, others = room.found.longest, sorted(_others(room), key=lambda one: one.cost)
    fitting = [one for one in others if one.found.verdict is Verdict.FITS]
    usable = fitting[:1] or [one for one in others if one.found.longest]
    most = max(usable, key=lambda one: one.found.longest, default=None)
    if here:
        more = f", or take {_said(room, most)}" if most and most.found.longest > here else ""
        return f": give --max-model-len {here} or less{more}"
    if most:
        said = dict.fromkeys(_said(room, one) for one in (usable[0], most))
        return f"; it would with {', or with '.join(said)}"
    tight = [one for one in others if one.found.verdict is Verdict.TIGHT]
    if tight:
        return f"; it is tight, and would be tried, with {_said(room, tight[0])}"
    return f"; no division over {room.total} cards makes it fit"


def _others(room: Room) -> Sequence[Way]:
    """What comes of each other division; of no more than the model's own context. Tensor parallel
    over hosts is slower for every token: what it holds more has to be worth that."""
    length = room.wanted.length
    beyond = length is not None and length > room.shape.longest
    wanted = replace(room.wanted, length=None) if beyond else room.wanted
    found = ways(room.shape, room.weights, room.kinds, wanted, room.measured)
    inside = max((one.found.longest for one in found if one.hosts == 1), default=0)
    return [
        one
        for one in found
        if (one.division != room.division or one.memory_mib > room.memory_mib)
        and (
            one.hosts == 1
            or one.found.verdict is Verdict.FITS
            or one.found.longest > inside * _WORTH_IT
        )
    ]


def _said(room: Room, way: Way) -> str:
    """`TP 2 over 2 hosts, --pp 2 and --max-model-len 4096`; `a card of 80 GiB`."""
    tensor, pipeline = way.division
    cards = "a card" if tensor * pipeline == 1 else "cards"
    larger = f"{cards} of {way.memory_mib / 1024:.0f} GiB"
    over = f" over {way.hosts} hosts" if way.hosts > 1 else ""
    on = f" on {larger}" if way.memory_mib > room.memory_mib else ""
    words = [f"TP {tensor}{over}{on}"]
    if max(pipeline, room.wanted.pipeline_parallel) > 1:
        words.append(f"--pp {pipeline}")
    if way.division == room.division:
        words = [larger]
    length = min(way.found.length, way.found.longest)
    if 0 < length < room.found.length:
        words.append(f"--max-model-len {length}")
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
