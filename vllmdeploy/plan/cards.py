"""The card ledger: which card of a host is whose, so that none is promised twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllmdeploy.core.card import Card
from vllmdeploy.core.host import Host
from vllmdeploy.core.spec import CLUSTER_LABEL, ROLE_LABEL, SERVICE_LABEL
from vllmdeploy.plan.observed import FoundHost, found_node

_RAY_ROLES = ("ray-head", "ray-worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One card and who has it: nobody, Ray, one of our instances, or a stranger."""

    card: Card
    holder: str = ""
    ours: bool = False
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RayShare:
    """What Ray gets on one host: real cards to hand over, and the number to declare."""

    cards: tuple[Card, ...] = ()
    declared: int = 0
    all_of_them: bool = True
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def ledger(found: FoundHost) -> tuple[Entry, ...]:
    """Every card of the host with its holder, from labels and from the vendor's tool."""
    holders = _labelled(found)
    entries: list[Entry] = []
    for card in found.cards.cards:
        allowed = found.host.gpus is None or card.index in found.host.gpus
        ours = holders.get(card.index)
        holder = ours.name if ours else ""
        if not holder and card.processes:
            holder = ", ".join(f"{one.name or 'process'} (pid {one.pid})" for one in card.processes)
        entries.append(
            Entry(
                card=card,
                holder=holder,
                ours=ours is not None,
                usable=allowed and not card.problem,
            )
        )
    return tuple(entries)


@dataclass(frozen=True, slots=True)
class _Holder:
    """A running node or instance of this tool; `ray_of` is the cluster whose Ray it is."""

    name: str
    ray_of: str | None = None


def _labelled(found: FoundHost) -> dict[int, _Holder]:
    """Cards that nodes and instances of this tool hold, of any of its clusters.

    An instance comes before a Ray that claims its card too: Ray can do without it.
    """
    rays: dict[int, _Holder] = {}
    instances = {index: _Holder(name) for index, name in found.promised.items()}
    for node in found.supervised:
        if not node.running:
            continue
        if node.role in _RAY_ROLES:
            rays.update((index, _Holder("Ray", node.cluster)) for index in node.cards)
        else:
            instances.update((index, _Holder(node.name)) for index in node.cards)
    for container in found.containers:
        if not container.running or CLUSTER_LABEL not in container.labels:
            continue
        labels, cards = container.labels, found_node(container).cards
        if labels.get(ROLE_LABEL) in _RAY_ROLES:
            rays.update((index, _Holder("Ray", labels[CLUSTER_LABEL])) for index in cards)
        else:
            service = labels.get(SERVICE_LABEL)
            name = f"{container.name} ({service})" if service else container.name
            instances.update((index, _Holder(name)) for index in cards)
    return {**rays, **instances}


def share_for_ray(found: FoundHost, cluster: str) -> RayShare:
    """All usable cards that no instance and no other cluster of ours holds, up to `ray_gpus`."""
    host = found.host
    if found.cards.vendor == "cpu":
        return RayShare(declared=host.ray_gpus or 0)
    problems = _wrong_subset(host, found.cards.cards)
    taken = {
        index: holder.name
        for index, holder in _labelled(found).items()
        # What this cluster's own Ray holds it simply keeps.
        if holder.ray_of not in (cluster, "")
    }
    free: list[Card] = []
    notes: list[str] = []
    for entry in ledger(found):
        index = entry.card.index
        if entry.card.problem:
            notes.append(f"{host.name}: card {index} left out: {entry.card.problem}")
        elif index in taken:
            notes.append(f"{host.name}: card {index} left out: held by {taken[index]}")
        elif entry.usable:
            free.append(entry.card)
            if entry.card.processes and not entry.ours:
                notes.append(f"{host.name}: card {index} is in use by {entry.holder}")
    if host.ray_gpus is not None and host.ray_gpus > len(free):
        problems += (f"{host.name}: ray_gpus={host.ray_gpus}, but {len(free)} cards are free",)
    chosen = tuple(free[: host.ray_gpus] if host.ray_gpus is not None else free)
    return RayShare(
        cards=chosen,
        declared=len(chosen),
        all_of_them=len(chosen) == len(found.cards.cards),
        notes=tuple(notes),
        problems=problems,
    )


def _wrong_subset(host: Host, cards: Sequence[Card]) -> tuple[str, ...]:
    there = {card.index for card in cards}
    missing = [index for index in host.gpus or () if index not in there]
    if not missing:
        return ()
    having = ",".join(map(str, sorted(there))) or "none"
    wanted = ",".join(map(str, missing))
    return (f"{host.name}: gpus= names card {wanted}, which is not there (it has {having})",)
