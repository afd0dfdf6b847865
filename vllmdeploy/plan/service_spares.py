"""What becomes of stored services when a spare has the place of a host that they ran on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vllmdeploy.core.spec import GENERATION_VARIABLE
from vllmdeploy.plan import service_ranks as ranks
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm_services import Service, Stored

Places = Mapping[str, str]
"""The spare that has its place, by host."""


@dataclass(frozen=True, slots=True)
class PlacedAnew:
    """The files that change, by service, and why others that should have moved cannot."""

    changed: Mapping[str, Stored]
    notes: tuple[str, ...] = ()


def places_of(found: FoundServices) -> Places:
    return {one.stands_in_for: one.name for one in found.members if one.stands_in_for}


def placed_anew(wanted: Wanted, found: FoundServices, idle: Collection[str] = ()) -> PlacedAnew:
    """What waits for a replaced host waits for its spare from now on, under a new generation.
    `idle`: spares without a place, which may have had one before."""
    taken = ranks.held(found)
    changed: dict[str, Stored] = {}
    notes: list[str] = []
    for name, one in found.stored.items():
        service = one.service
        if service is None:
            continue
        places = {**places_of(found), **_given_back(found, _named(one, service), idle)}
        if service.executor == "ray":
            if new := _waiting_for(one, service, places):
                changed[name] = new
            continue
        gone = [host for host in service.placement if host in places]
        if not gone:
            continue
        placement, lacking = _placement(found, service, places, taken)
        if lacking:
            notes.append(f"service {name} lost {', '.join(gone)}: {lacking}")
            continue
        for host, cards in placement.items():
            taken.setdefault(host, {}).update(dict.fromkeys(cards, name))
        changed[name] = _on(one, service, placement, wanted, found)
    return PlacedAnew(changed, tuple(notes))


def models_wanted(found: FoundServices) -> Mapping[str, frozenset[str]]:
    """Names of the models that a spare which stands in for a host must have: by Ray any service of
    its group may come to it, without Ray those that have ranks there."""
    return {
        spare: frozenset(
            service.model
            for service in found.services
            if service.executor == "ray" or {host, spare} & service.placement.keys()
        )
        for host, spare in places_of(found).items()
    }


def _named(one: Stored, service: Service) -> tuple[str, ...]:
    """The hosts that it cannot run without."""
    if service.executor == "mp":
        return tuple(service.placement)
    document = cast("dict[str, Any]", json.loads(one.content))
    return tuple(map(str, document.get("nodes", ())))


def _given_back(found: FoundServices, named: Sequence[str], idle: Collection[str]) -> Places:
    """A spare that is only a spare again gives its places to members that had none."""
    others = [member.name for member in found.members if member.name not in named]
    return dict(zip((host for host in named if host in idle), others, strict=False))


def _waiting_for(one: Stored, service: Service, places: Places) -> Stored | None:
    """A service by Ray names only the hosts that it cannot do without."""
    nodes = _named(one, service)
    if not places.keys() & set(nodes):
        return None
    document = cast("dict[str, Any]", json.loads(one.content))
    changed = {**document, "nodes": [places.get(node, node) for node in nodes]}
    return _next_generation(one, service, changed)


def _placement(
    found: FoundServices,
    service: Service,
    places: Places,
    taken: Mapping[str, Mapping[int, str]],
) -> tuple[ranks.Placement, str]:
    """Where its ranks go, in the same order, or what keeps them from it."""
    members = {member.name: member for member in found.members}
    placement: dict[str, tuple[int, ...]] = {}
    for host, cards in service.placement.items():
        spare = places.get(host)
        if spare is None:
            placement[host] = cards
            continue
        there = ranks.cards_of(members[spare])
        free = [card for card in there if card not in taken.get(spare, {})]
        if len(free) < len(cards):
            needed = "1 card is" if len(cards) == 1 else f"{len(cards)} cards are"
            return {}, f"{needed} needed, {spare} has {len(free)} free"
        placement[spare] = tuple(free[: len(cards)])
    return placement, ""


def _on(
    one: Stored,
    service: Service,
    placement: ranks.Placement,
    wanted: Wanted,
    found: FoundServices,
) -> Stored:
    members = {member.name: member for member in found.members}
    shown = {
        host: ranks.visible(wanted, members[host], cards)
        for host, cards in placement.items()
        if host in members
    }
    before = service
    service = replace(
        service,
        placement=placement,
        visible={host: names for host, names in shown.items() if names},
    )
    document = cast("dict[str, Any]", json.loads(one.content))
    if service.leader != before.leader:
        service = replace(service, host=members[service.leader].place.ip)
        document = _led_from(document, before, service)
    own = {name for names in before.visible.values() for name in names}
    environment = {key: value for key, value in document["env"].items() if key not in own}
    document["env"] = {**environment, **service.visible.get(service.leader, {})}
    if "ranks" in document:
        addresses = dict(cast("list[tuple[str, str]]", document["ranks"]["hosts"]))
        addresses |= {name: member.place.ip for name, member in members.items()}
        after = replace(service, generation=service.generation + 1)
        document["ranks"] = ranks.link(after, addresses)
    return _next_generation(one, service, document)


def _led_from(document: Mapping[str, Any], before: Service, after: Service) -> dict[str, Any]:
    """The API and the ranks' rendezvous have the address of the first rank's host."""
    moved = {
        key: value.replace(before.url, after.url, 1) if key.endswith("_url") else value
        for key, value in document.items()
    }
    argv = [after.host if word == before.host else word for word in document["argv"]]
    return {**moved, "argv": argv, "node": after.leader}


def _next_generation(one: Stored, service: Service, document: Mapping[str, Any]) -> Stored:
    """A new number is a new engine: nothing of the one before is met again."""
    service = replace(service, generation=service.generation + 1)
    changed = {
        **document,
        "env": {**document["env"], GENERATION_VARIABLE: str(service.generation)},
        "service": service.document(),
    }
    content = json.dumps(changed, indent=1, ensure_ascii=False).encode() + b"\n"
    return replace(one, content=content, service=service)
