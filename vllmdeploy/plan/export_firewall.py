"""Which ports of each host have to be open, and to whom: the fleet, and callers of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.core.plan import Draft, Run, Step
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools.firewall import KEPT_BY_ITSELF, TOOLS, Opening, applied, joined
from vllmdeploy.tools.ray import RayPorts


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """One host. `ip` is what the others reach it by; `gateway`: the API is offered here."""

    host: str
    ip: str
    head: bool
    gateway: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """The ports that the settings pin. `ray` None: there is no Ray."""

    engines: tuple[int, ...]
    api: int
    callers: tuple[str, ...] = ()
    ray: RayPorts | None = None


def openings(host: Guarded, fleet: Sequence[Guarded], pinned: Pinned) -> tuple[Opening, ...]:
    """The fleet's own ports to the other hosts only; the API to those who may call it."""
    others = tuple(dict.fromkeys(one.ip for one in fleet if one.ip != host.ip))
    found: list[Opening] = []
    if others:
        ports = set(pinned.engines)
        if pinned.ray:
            ports |= {*(pinned.ray.of_head if host.head else pinned.ray.of_worker)}
            ports |= {*range(pinned.ray.workers[0], pinned.ray.workers[1] + 1)}
        found.append(Opening(ports=joined(ports), sources=others))
    if host.gateway:
        found.append(Opening(ports=((pinned.api, pinned.api),), sources=pinned.callers))
    return tuple(found)


def lines(fleet: Sequence[Guarded], pinned: Pinned, tools: Sequence[str]) -> Mapping[str, str]:
    """By host, the text of a script to read before it is run as root."""
    return {
        host.host: "\n".join(
            f"# {host.host}: {tool}\n" + "\n".join(TOOLS[tool](openings(host, fleet, pinned)))
            for tool in tools
        )
        for host in fleet
    }


def apply(
    draft: Draft, found: FoundHost, tool: str, fleet: Sequence[Guarded], pinned: Pinned
) -> None:
    """`tool` empty: the one that is switched on; without any, there is nothing to open."""
    name = found.host.name
    using = tool or found.firewall.name
    if not using:
        draft.note(
            f"{name}: neither ufw nor firewalld is active, nothing is opened;"
            " --tool nft or --tool iptables, where one of them filters"
        )
        return
    if using not in KEPT_BY_ITSELF:
        draft.note(f"{name}: {using} forgets this at a reboot unless its rules are saved")
    own = next(one for one in fleet if one.host == name)
    command = applied(using, openings(own, fleet, pinned))
    action = Run(found.access.of(command))
    subject = f"ports to the fleet and to callers, by {using}"
    draft.add(Step(name, "open", subject, "export firewall --apply", action))
