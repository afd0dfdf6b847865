"""Where a service's ranks can go: cards in Ray, who holds them, and which hosts it cannot lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Result
from vllmdeploy.core.plan import Wait
from vllmdeploy.plan.service_ranks import cards_of, free_cards, held
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.tools import ray
from vllmdeploy.tools.vllm_services import Service

_GIVEN_BACK_LIMIT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The cards of one group's Ray cluster, by host, and the services that hold some of them."""

    by_host: tuple[tuple[str, int], ...]
    in_use: int
    held: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(count for _, count in self.by_host)

    @property
    def free(self) -> int:
        """A stored service has its cards promised, also while it does not run."""
        promised = sum(count for _, count in self.held)
        return self.total - max(self.in_use, promised)

    def lacking(self, count: int) -> str:
        """Why so many cards cannot be had, where they are and who holds them; or nothing."""
        if count <= self.free:
            return ""
        where = ", ".join(f"{host}: {cards}" for host, cards in self.by_host) or "no host"
        holders = [f"{name} holds {cards}" for name, cards in self.held]
        strangers = self.in_use - sum(cards for _, cards in self.held)
        if strangers > 0:
            holders.append(f"others on this Ray cluster hold {strangers}")
        held = f"; {', '.join(holders)}" if holders else ""
        needed = "1 card is" if count == 1 else f"{count} cards are"
        return f"{needed} needed, {self.free} of {self.total} are free ({where}{held})"

    def needed_hosts(self, count: int) -> tuple[str, ...]:
        """Hosts without which the rest has too few cards: the engine waits for these."""
        return tuple(host for host, cards in self.by_host if self.total - cards < count)


def pool_of(found: FoundServices, *, besides: str = "") -> Pool:
    """`besides`: a service that is about to be replaced, whose cards count as free."""
    if found.head.executor == "mp":
        return _without_ray(found, besides)
    resource = found.head.accelerator.ray_resource
    nodes = found.ray_nodes
    held = [
        (one.name, one.world)
        for one in found.services
        if one.group == found.head.found.host.group and one.executor == "ray"
    ]
    given_back = sum(count for name, count in held if name == besides)
    used = sum(int(node.used.get(resource, 0)) for node in nodes)
    return Pool(
        by_host=tuple((node.name, node.cards(resource)) for node in nodes if node.cards(resource)),
        in_use=max(0, used - given_back),
        held=tuple((name, count) for name, count in held if name != besides),
    )


def _without_ray(found: FoundServices, besides: str) -> Pool:
    """Nobody but our own services has cards of nodes without Ray."""
    free = free_cards(found, besides=besides)
    cards = {one.name: len(cards_of(one)) for one in found.members if one.name in free}
    counts = Counter(
        name for by_card in held(found, besides=besides).values() for name in by_card.values()
    )
    return Pool(
        by_host=tuple(cards.items()),
        in_use=sum(cards.values()) - sum(map(len, free.values())),
        held=tuple(counts.items()),
    )


def cards_by_ray(found: FoundServices, engines: Iterable[Service]) -> int:
    """Those that Ray itself says these engines have. Of one that still loads it says nothing yet:
    that has what others have not."""
    states = [(one, found.engines.get(one.name)) for one in engines if one.executor == "ray"]
    known = sum(sum(state.placement.values()) for _, state in states if state is not None)
    loading = [one for one, state in states if state is not None and not state.placement]
    if not loading:
        return known
    pool, names = pool_of(found), {one.name for one, _ in states}
    others = sum(count for name, count in pool.held if name not in names)
    return known + max(0, min(sum(one.world for one in loading), pool.in_use - known - others))


def await_cards(ground: Ground, name: str, left_in_use: int, needs: tuple[str, ...]) -> str:
    """Ray hears a moment later than we do that ranks have ended, and so would who starts the next
    service. Others may take cards meanwhile: it is waited for, but not long."""
    resource = ground.head.accelerator.ray_resource

    def missing(result: Result) -> str | None:
        nodes = ray.parse_cluster(result).alive().values()
        still = sum(int(node.used.get(resource, 0)) for node in nodes) - left_in_use
        return f"Ray still counts {still} of them" if still > 0 else None

    wait = Wait(ground.ctl("nodes"), missing, limit_s=_GIVEN_BACK_LIMIT_S, at_most=True)
    return ground.add("await", f"cards of {name}", "Ray hears that they are free", wait, needs)


def free_ports(
    found: FoundServices, ports: tuple[int, int], *, count: int = 1, leader: str = ""
) -> tuple[int, ...]:
    """The first ports of the range that nobody listens on and no stored service has; fewer than
    `count` where there are no more. `leader`: the host that is to listen, else the head."""
    member = next((one for one in found.members if one.name == leader), found.head)
    taken = {listener.port for listener in member.found.listeners}
    taken |= {port for one in found.services for port in one.ports}
    first, last = ports
    return tuple(port for port in range(first, last + 1) if port not in taken)[:count]


def divisors(heads_allow: Sequence[int], most: int) -> str:
    """`TP 1, 3 or 9`: what would work instead."""
    possible = [str(one) for one in heads_allow if one <= most]
    if len(possible) < 2:
        return f"TP {possible[0]}" if possible else ""
    return f"TP {', '.join(possible[:-1])} or {possible[-1]}"
