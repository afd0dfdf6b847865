"""Where a service's ranks can go: cards in Ray, who holds them, and which hosts it cannot lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllmdeploy.plan.service_wanted import FoundServices


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
        return f"{count} cards are needed, {self.free} of {self.total} are free ({where}{held})"

    def needed_hosts(self, count: int) -> tuple[str, ...]:
        """Hosts without which the rest has too few cards: the engine waits for these."""
        return tuple(host for host, cards in self.by_host if self.total - cards < count)


def pool_of(found: FoundServices, *, besides: str = "") -> Pool:
    """`besides`: a service that is about to be replaced, whose cards count as free."""
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


def free_port(found: FoundServices, ports: tuple[int, int]) -> int | None:
    """The first port of the range that nobody listens on and no stored service has."""
    taken = {listener.port for listener in found.head.found.listeners}
    taken |= {one.port for one in found.services}
    first, last = ports
    return next((port for port in range(first, last + 1) if port not in taken), None)


def divisors(heads_allow: Sequence[int], most: int) -> str:
    """`TP 1, 3 or 9`: what would work instead."""
    possible = [str(one) for one in heads_allow if one <= most]
    if len(possible) < 2:
        return f"TP {possible[0]}" if possible else ""
    return f"TP {', '.join(possible[:-1])} or {possible[-1]}"
