"""Which instance of a model goes to which cards and port of which host, or all reasons against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as count_from
from itertools import zip_longest

from vllmdeploy.plan.cards import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """`asked`: ports that the user named, all of them on every host. Otherwise the first free ones
    of `usual` are taken."""

    asked: tuple[int, ...] = ()
    usual: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One host as instances see it: its cards with their holders, and who has which port.

    `cardless`: it has no cards at all, and engines run on its processors, where `seated` ones
    share its memory already.
    """

    host: str
    cards: tuple[Entry, ...] = ()
    taken_ports: Mapping[int, str] = field(default_factory=dict[int, str])
    cardless: bool = False
    seated: int = 0

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(one.card.index for one in self.cards if one.usable and not one.holder)

    def __str__(self) -> str:
        if self.cardless:
            return f"{self.host}: no cards"
        lost = (
            f"card {one.card.index}: {one.holder or one.card.problem or 'not in gpus='}"
            for one in self.cards
            if one.holder or not one.usable
        )
        why = ", ".join(lost)
        return (
            f"{self.host}: {len(self.free)} of {len(self.cards)} free{f' ({why})' if why else ''}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one instance goes. `sharing`: how many instances have these same cards, or its host's
    memory where there are no cards, when it was placed."""

    number: int
    host: str
    port: int
    cards: tuple[int, ...] = ()
    sharing: int = 1

    def __str__(self) -> str:
        many = "s" if len(self.cards) > 1 else ""
        where = f"card{many} {','.join(map(str, self.cards))}" if self.cards else "processors"
        shared = (
            f", one of {self.sharing} on {'them' if many else 'it'}"
            if self.sharing > 1 and self.cards
            else ""
        )
        return f"instance {self.number}: {self.host}, {where}, port {self.port}{shared}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The slots, by number. With `reasons`, none may be used."""

    slots: tuple[Slot, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many instances, of how many cards each. `count` None: as many as there is room for;
    `per_card`: that many share each set of cards (WORKERS under MPS)."""

    count: int | None = None
    cards_each: int = 1
    per_card: int = 1


def place(
    shape: Shape, rooms: Sequence[Room], ports: Ports, *, numbers: Sequence[int] = ()
) -> Placement:
    """Hosts take turns, so that the load is even; on a host the lowest cards go first.

    `numbers`: those that instances of the same name have already.
    """
    seats = list(_in_turn({room.host: _sets(shape, room) for room in rooms}))
    count = len(seats) if shape.count is None else shape.count
    reasons: tuple[str, ...] = (
        () if 0 < count <= len(seats) else (_lacking(shape, count, rooms, len(seats)),)
    )
    chosen = seats[:count]
    given = _given_ports(rooms, [host for host, _ in chosen], ports)
    reasons += given.reasons
    if reasons:
        return Placement(reasons=reasons)
    free = {host: iter(of_host) for host, of_host in given.by_host.items()}
    unused = _unused(numbers)
    seated = {room.host: room.seated for room in rooms}
    slots = tuple(
        Slot(
            number=next(unused),
            host=host,
            port=next(free[host]),
            cards=cards,
            sharing=chosen.count((host, cards)) + seated[host],
        )
        for host, cards in chosen
    )
    return Placement(slots=slots, notes=given.notes)


def _sets(shape: Shape, room: Room) -> Iterator[tuple[int, ...]]:
    """The card sets of a host, each as often as instances share it."""
    if room.cardless:
        # Processors can be shared by any number; memory is asked about elsewhere.
        return iter([()] * (shape.count or 1))
    size, free = shape.cards_each, room.free
    whole = (free[at : at + size] for at in range(0, len(free) - size + 1, size))
    return (cards for cards in whole for _ in range(shape.per_card))


def _in_turn(
    sets: Mapping[str, Iterator[tuple[int, ...]]],
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One seat of each host, then the next of each."""
    rows = zip_longest(*sets.values())
    for row in rows:
        for host, cards in zip(sets, row, strict=True):
            if cards is not None:
                yield host, cards


def _lacking(shape: Shape, count: int, rooms: Sequence[Room], seats: int) -> str:
    """The arithmetic: what is wanted, how many cards that is, and where there are how many."""
    wanted = max(count, 1)
    sets = -(-wanted // shape.per_card)
    each = f"{shape.cards_each} card{'s' if shape.cards_each > 1 else ''} each"
    shared = f", {shape.per_card} to a set of cards," if shape.per_card > 1 else ""
    where = "; ".join(map(str, rooms)) or "no host is meant"
    return (
        f"{wanted} instance{'s' if wanted > 1 else ''} of {each}{shared} need"
        f"{'' if wanted > 1 else 's'} {sets * shape.cards_each} free cards;"
        f" there is room for {seats} ({where})"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _GivenPorts:
    by_host: Mapping[str, tuple[int, ...]]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def _given_ports(rooms: Sequence[Room], hosts: Sequence[str], ports: Ports) -> _GivenPorts:
    """For each host its ports in order, the reasons against, and what was passed over."""
    by_host: dict[str, tuple[int, ...]] = {}
    reasons: list[str] = []
    notes: list[str] = []
    for room in rooms:
        needed = hosts.count(room.host)
        if ports.asked and needed > len(ports.asked):
            reasons.append(
                f"{room.host}: {needed} instances need {needed} ports, {len(ports.asked)} are given"
            )
        candidates = ports.asked[:needed] if ports.asked else ports.usual
        free = tuple(one for one in candidates if one not in room.taken_ports)[:needed]
        passed = candidates[: candidates.index(free[-1])] if free else candidates[:needed]
        taken = [f"{room.host}: {room.taken_ports[one]}" for one in passed if one not in free]
        if ports.asked:
            reasons += [
                f"{room.host}: {room.taken_ports[one]}" for one in candidates if one not in free
            ]
        elif needed > len(free):
            reasons.append(f"{room.host}: {needed} ports are needed, {len(free)} are free")
        else:
            notes += taken
        by_host[room.host] = free
    return _GivenPorts(by_host=by_host, reasons=tuple(reasons), notes=tuple(notes))


def _unused(numbers: Sequence[int]) -> Iterator[int]:
    return (number for number in count_from(1) if number not in numbers)
