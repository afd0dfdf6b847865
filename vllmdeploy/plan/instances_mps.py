"""Instances that share cards: the MPS daemon each uses, and what that changes for its engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vllmdeploy.core.card import Card
from vllmdeploy.core.plan import Draft
from vllmdeploy.core.spec import MpsDoor
from vllmdeploy.plan import mps, mps_refusals, mps_share
from vllmdeploy.plan.instances import Slot
from vllmdeploy.plan.mps import FoundMps, MpsWanted, Scope
from vllmdeploy.plan.mps_share import Share
from vllmdeploy.plan.node import Member
from vllmdeploy.tools.mps_found import Mps


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How instances share cards where several have the same. `cache_bytes`: the KV cache of each,
    instead of a share of the card; `uid`: who their containers run as."""

    pipe: str
    log: str
    percentage: int | None = None
    cache_bytes: int | None = None
    uid: int | None = None
    custom_all_reduce: bool = False

    @classmethod
    def stored(cls, kept: Mapping[str, Any]) -> Sharing:
        """As `asdict` wrote it; keys of another version are left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{key: value for key, value in kept.items() if key in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """The slots of one host that share cards, and what MPS does there."""

    cluster: str
    sharing: Sharing
    member: Member
    slots: tuple[Slot, ...]
    mps: Mps
    total: float | None = None

    @property
    def host(self) -> FoundMps:
        return FoundMps(found=self.member.found, mps=self.mps)

    @property
    def wanted(self) -> MpsWanted:
        """The daemons that these slots need: static partitions are used where they are."""
        cards = tuple(sorted({index for slot in self.slots for index in slot.cards}))
        several = any(len(slot.cards) > 1 for slot in self.slots)
        return MpsWanted(
            cluster=self.cluster,
            pipe=self.sharing.pipe,
            log=self.sharing.log,
            per="host" if several else "card",
            cards=() if several else cards,
            uid=self.sharing.uid,
        )

    def cards(self, slot: Slot) -> tuple[Card, ...]:
        return tuple(one for one in self.member.found.cards.cards if one.index in slot.cards)

    def share(self, slot: Slot) -> Share:
        return mps_share.divided(
            slot.sharing,
            self.total,
            cache_bytes=self.sharing.cache_bytes,
            percentage=self.sharing.percentage,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What sharing changes for one instance: nothing, where it has its cards alone."""

    door: MpsDoor | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    arguments: tuple[str, ...] = ()


def crowd(
    cluster: str,
    sharing: Sharing | None,
    member: Member,
    slots: Sequence[Slot],
    found: Mapping[str, Mps],
    total: float | None,
) -> Crowd | None:
    """Nothing where no card is shared, or where cards are not NVIDIA's."""
    shared = tuple(one for one in slots if one.host == member.name and one.sharing > 1)
    if sharing is None or not shared or member.accelerator.name != "nvidia":
        return None
    # A host that nobody asked, as for files that are only written, is taken to be fit.
    there = found.get(member.name, Mps(installed=True))
    return Crowd(
        cluster=cluster, sharing=sharing, member=member, slots=shared, mps=there, total=total
    )


def refusals(crowded: Crowd) -> Iterable[str]:
    """Why these instances cannot share; daemons that run already are as good as new ones."""
    yield from mps_refusals.refusals(crowded.wanted, _tolerant(crowded))
    for slot in dict.fromkeys(_first_of_each(crowded.slots)):
        name = crowded.member.name
        share, cards = crowded.share(slot), crowded.cards(slot)
        yield from (f"{name}: {why}" for why in mps_share.refusals(share, crowded.total, cards))
        yield from _partitions_lacking(crowded, slot)


def _tolerant(crowded: Crowd) -> FoundMps:
    """The host without those of our daemons that do what is needed, whatever else they do."""
    fit = {scope.pipe: scope for scope in _scopes(crowded)}
    host = crowded.host
    left = tuple(
        one
        for one in host.mps.daemons
        if one.pipe not in fit
        or mps.foreign(crowded.cluster, one)
        or not set(fit[one.pipe].ids) <= set(one.cards)
    )
    return FoundMps(
        found=host.found,
        mps=Mps(installed=host.mps.installed, daemons=left, modes=host.mps.modes),
    )


def _scopes(crowded: Crowd) -> tuple[Scope, ...]:
    return mps.scopes(crowded.wanted, crowded.member.found)


def _first_of_each(slots: Iterable[Slot]) -> Iterable[Slot]:
    seen: set[tuple[int, ...]] = set()
    for slot in slots:
        if slot.cards not in seen:
            seen.add(slot.cards)
            yield slot


def _partitions_lacking(crowded: Crowd, slot: Slot) -> Iterable[str]:
    daemon = crowded.mps.at(_door(crowded, slot).pipe)
    if daemon is not None and daemon.static and len(daemon.partitions) < slot.sharing:
        yield (
            f"{crowded.member.name}: {daemon} has {len(daemon.partitions)} static partitions for"
            f" {slot.sharing} engines; `vllmdeploy mps restart --partitions` makes others"
        )


def notes(crowded: Crowd) -> Iterable[str]:
    """The arithmetic, once for each size of card."""
    for slot in _first_of_each(crowded.slots):
        share = crowded.share(slot)
        for line in mps_share.arithmetic(share, crowded.total, crowded.cards(slot)):
            yield f"{crowded.member.name}: {line}"


def daemons(draft: Draft, crowded: Crowd) -> tuple[str, ...]:
    """Steps that start the daemons these slots lack; their keys."""
    missing = [one for one in _scopes(crowded) if crowded.mps.at(one.pipe) is None]
    cause = "engines will share its card" if crowded.wanted.per == "card" else "engines share cards"
    return mps.start_scopes(draft, crowded.wanted, crowded.host, missing, (), cause=cause)


def seat(crowded: Crowd, slot: Slot, *, in_container: bool) -> Seat:
    door, share = _door(crowded, slot), crowded.share(slot)
    arguments = share.engine_arguments
    if crowded.sharing.custom_all_reduce:
        arguments = tuple(one for one in arguments if one != mps_share.ALL_REDUCE_OFF)
    variables = mps_share.environment(door, share, partition=_partition(crowded, slot, door))
    if not in_container:
        (scope,) = (one for one in _scopes(crowded) if one.pipe == door.pipe)
        seen = mps_share.visible(crowded.cards(slot), scope.cards)
        variables = {**variables, crowded.member.accelerator.visible_variable: seen}
    return Seat(door=door, environment=variables, arguments=arguments)


def _door(crowded: Crowd, slot: Slot) -> MpsDoor:
    if crowded.wanted.per == "host":
        return MpsDoor(pipe=crowded.sharing.pipe, log=crowded.sharing.log)
    return mps_share.door(crowded.sharing.pipe, crowded.sharing.log, crowded.cards(slot))


def _partition(crowded: Crowd, slot: Slot, door: MpsDoor) -> str:
    """One partition of its card for each, in the order of their numbers."""
    daemon = crowded.mps.at(door.pipe)
    if daemon is None or not daemon.static:
        return ""
    sharers = sorted(one.number for one in crowded.slots if one.cards == slot.cards)
    place = sharers.index(slot.number)
    return daemon.partitions[place] if place < len(daemon.partitions) else ""
