"""Services without Ray: the hosts and cards of each rank, and the file that its warden runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_services import Service

Placement = Mapping[str, tuple[int, ...]]
"""Cards by host, in the order of ranks."""

_PROBES = ("health_url", "metrics_url", "canary_url", "canary_body")


def cards_of(member: Member) -> tuple[int, ...]:
    """What services may have on this host; without cards, as many ranks as were declared."""
    share = member.share
    return tuple(card.index for card in share.cards) or tuple(range(share.declared))


def held(found: FoundServices, *, besides: str = "") -> dict[str, dict[int, str]]:
    """Which stored service has which card of which host."""
    by_host: dict[str, dict[int, str]] = {}
    for service in found.services:
        if service.name != besides:
            for host, cards in service.placement.items():
                by_host.setdefault(host, {}).update(dict.fromkeys(cards, service.name))
    return by_host


def free_cards(found: FoundServices, *, besides: str = "") -> dict[str, tuple[int, ...]]:
    taken = held(found, besides=besides)
    return {
        member.name: tuple(
            card for card in cards_of(member) if card not in taken.get(member.name, {})
        )
        for member in found.members
        if not member.found.host.spare or member.stands_in_for
    }


def place(free: Mapping[str, tuple[int, ...]], count: int) -> Placement:
    """On the fewest hosts that each give the same number, as vLLM has it; empty where none do.

    One host alone: the one where the least is left over. Several: in their order, so that the
    group's head, which is the first, leads wherever it takes part.
    """
    for hosts in range(1, len(free) + 1):
        each = count // hosts
        able = [name for name, cards in free.items() if len(cards) >= each]
        if count % hosts or len(able) < hosts:
            continue
        if hosts == 1:
            able = [min(able, key=lambda name: len(free[name]))]
        return {name: free[name][:each] for name in able[:hosts]}
    return {}


def placements(found: FoundServices, count: int, *, besides: str = "") -> Iterator[Placement]:
    """Where so many ranks can go: on any free cards, then only on those that are larger."""
    free = free_cards(found, besides=besides)
    memory = {
        (one.name, card.index): card.memory_total_mib or 0
        for one in found.members
        for card in one.share.cards
    }
    for least in sorted({memory.get((host, card), 0) for host in free for card in free[host]}):
        large = {
            host: tuple(card for card in cards if memory.get((host, card), 0) >= least)
            for host, cards in free.items()
        }
        if somewhere := place(large, count):
            yield somewhere


def refusals(
    found: FoundServices, placement: Placement, count: int, *, besides: str = ""
) -> Iterable[str]:
    """What keeps a service of so many cards from running without Ray."""
    for member in found.members:
        if not any(one.without_ray for one in member.found.wardens.values()):
            yield f"{member.name}: no node without Ray runs here: `vllmdeploy up` makes it"
    yield from cannot_span(found.vllm, len(placement))
    if why := unplaced(free_cards(found, besides=besides), count):
        yield why


def unplaced(free: Mapping[str, tuple[int, ...]], count: int) -> str:
    """Why enough free cards are still not the right ones."""
    if count <= 0 or place(free, count) or sum(map(len, free.values())) < count:
        return ""
    where = ", ".join(f"{host}: {len(cards)}" for host, cards in free.items())
    return (
        f"without Ray every host gives the same number of cards, and no hosts have"
        f" {count} free in equal parts ({where})"
    )


def cannot_span(vllm: Vllm, hosts: int) -> Iterable[str]:
    """What a vLLM lacks that is to run on several hosts by itself."""
    if hosts < 2 or vllm.problem:
        return
    if not vllm.knows("--nnodes") or not vllm.knows("--headless"):
        yield (
            f"vLLM {vllm.version} cannot span hosts without Ray (it has no --nnodes):"
            " take a newer image, or one with Ray (`vllmdeploy image build`)"
        )
    elif not vllm.serve:
        yield (
            f"vLLM {vllm.version} lacks its own command line here, which ranks on several hosts"
            " need: reinstall it, or use Ray"
        )


def visible(wanted: Wanted, member: Member, cards: tuple[int, ...]) -> dict[str, str]:
    """What keeps a rank to its cards among those that its node sees."""
    variable, all_cards = member.accelerator.visible_variable, cards_of(member)
    if not variable or not member.share.cards or cards == all_cards:
        return {}
    names: list[str] = [str(card) for card in all_cards]
    if wanted.runtime == "docker":
        shown = member.container_access(by_cdi=wanted.cdi).environment.get(variable, "")
        # A container whose devices were handed over one by one counts them from 0.
        names = shown.split(",") if shown else [str(place) for place in range(len(all_cards))]
    return {variable: ",".join(names[all_cards.index(card)] for card in cards)}


def link(service: Service, addresses: Mapping[str, str]) -> dict[str, object]:
    """What wardens need to begin and end their ranks together; nothing for one host."""
    if len(service.placement) < 2:
        return {}
    return {
        "index": 0,
        "hosts": [[host, addresses[host]] for host in service.placement],
        "port": service.ranks_ports[1],
        "generation": str(service.generation),
    }


def files_elsewhere(content: bytes, head: str) -> dict[str, bytes]:
    """A service's file on the other hosts than its group's head, from the one on the head."""
    document = cast("dict[str, Any]", json.loads(content))
    ranks = cast("dict[str, Any]", document.get("ranks") or {})
    hosts = [str(host) for host, _ in ranks.get("hosts", ())]
    leader = str(document.get("node") or head)
    found = {leader: content} if leader != head else {}
    for index, host in enumerate(hosts[1:], start=1):
        found[host] = _follower(document, index, host)
    return found


def _follower(leader: Mapping[str, Any], index: int, host: str) -> bytes:
    argv = [str(word) for word in leader["argv"]]
    at = argv.index("--node-rank")
    shown = cast("dict[str, dict[str, str]]", leader["service"]["visible"])
    own = {name for one in shown.values() for name in one}
    environment = {key: value for key, value in leader["env"].items() if key not in own}
    document = {
        **{key: value for key, value in leader.items() if key not in _PROBES},
        "argv": [*argv[: at + 1], str(index), "--headless", *argv[at + 2 :]],
        "env": {**environment, **shown.get(host, {})},
        "node": host,
        "ranks": {**leader["ranks"], "index": index},
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
