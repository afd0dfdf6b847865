"""Which address every host of a group uses: the fastest network on which all really connect."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.core.host import Host
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools.network import Interface

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A host's place in its group's network."""

    ip: str
    interface: str = ""
    speed_mbit: int | None = None

    def __str__(self) -> str:
        speed = f", {speed_text(self.speed_mbit)}" if self.speed_mbit else ""
        return f"{self.ip} on {self.interface}{speed}" if self.interface else self.ip


@dataclass(frozen=True, slots=True)
class Choice:
    """Places by host name; why faster networks were passed over; what makes it impossible."""

    places: Mapping[str, Place]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def speed_text(mbit: int | None) -> str:
    if mbit is None:
        return "unknown speed"
    return f"{mbit / 1000:g} Gbit/s" if mbit >= 1000 else f"{mbit} Mbit/s"


def shared_networks(found: Sequence[FoundHost]) -> tuple[ipaddress.IPv4Network, ...]:
    """Networks on which every host has an address, the fastest first.

    A network is as fast as its slowest member. Between equals, the one that the hosts are known
    by (their SSH addresses) comes first: it is the one that the operator has seen working.
    """
    common: set[ipaddress.IPv4Network] | None = None
    for host in found:
        networks = {interface.network for interface in _usable(host)}
        common = networks if common is None else common & networks
    return tuple(
        sorted(common or (), key=lambda network: (-_speed(found, network), *_known(found, network)))
    )


def _usable(found: FoundHost) -> tuple[Interface, ...]:
    return tuple(link for link in found.links.interfaces if link.for_fleet)


def _on(found: FoundHost, network: ipaddress.IPv4Network) -> Interface:
    return next(link for link in _usable(found) if link.network == network)


def _speed(found: Sequence[FoundHost], network: ipaddress.IPv4Network) -> int:
    return min(_on(host, network).speed_mbit or 0 for host in found)


def _known(found: Sequence[FoundHost], network: ipaddress.IPv4Network) -> tuple[int, str]:
    by_address = sum(_on(host, network).ip == host.host.address for host in found)
    return (-by_address, str(network))


def choose(
    found: Sequence[FoundHost], *, interface: str = AUTO, head_ip: str | None = None
) -> Choice:
    """Decide for one group, its head first. `ip=`, `interface=` and HEAD_IP always win."""
    fixed: dict[str, Place] = {}
    problems: list[str] = []
    for host in found:
        place = _given(host, interface, head_ip if host is found[0] else None)
        if isinstance(place, str):
            problems.append(place)
        elif place is not None:
            fixed[host.host.name] = place
        elif host.links.problem and len(found) > 1:
            problems.append(f"{host.host.name}: {host.links.problem}")
    if problems:
        return Choice({}, problems=tuple(problems))
    if len(fixed) == len(found):
        why_not = _broken_path(found, fixed)
        notes = (f"the given addresses are used, although {why_not}",) if why_not else ()
        return Choice(fixed, notes, _duplicates(fixed))
    if len(found) == 1:
        return _alone(found[0])
    return _together(found, fixed)


def _given(found: FoundHost, interface: str, head_ip: str | None) -> Place | str | None:
    """The user's word for this host: a place, a problem, or nothing."""
    host: Host = found.host
    ip = head_ip or host.ip
    if ip:
        link = found.links.with_ip(ip)
        if link is None:
            having = ", ".join(f"{one.ip} ({one.name})" for one in found.links.interfaces)
            return f"{host.name}: no interface has {ip}; it has {having or 'none'}"
        return Place(ip=ip, interface=link.name, speed_mbit=link.speed_mbit)
    name = host.interface or (interface if interface != AUTO else None)
    if name:
        link = found.links.named(name)
        if link is None:
            having = ", ".join(one.name for one in found.links.interfaces)
            return f"{host.name}: no interface {name} with an IPv4 address; it has {having}"
        return Place(ip=link.ip, interface=link.name, speed_mbit=link.speed_mbit)
    return None


def _alone(found: FoundHost) -> Choice:
    """A group of one host: the address it is known by, else the one of its default route."""
    links = found.links
    link = (
        links.with_ip(found.host.address)
        or links.named(links.default_interface)
        or next(iter(_usable(found)), None)
    )
    if link is None:
        return Choice({found.host.name: Place(ip="127.0.0.1", interface="lo")})
    place = Place(ip=link.ip, interface=link.name, speed_mbit=link.speed_mbit)
    return Choice({found.host.name: place})


def _together(found: Sequence[FoundHost], fixed: Mapping[str, Place]) -> Choice:
    notes: list[str] = []
    given = [ipaddress.IPv4Address(place.ip) for place in fixed.values()]
    # Who names one host's address means its network for the others too. Sorting is stable.
    networks = sorted(shared_networks(found), key=lambda one: -sum(ip in one for ip in given))
    for network in networks:
        places = {host.host.name: _place(host, network, fixed) for host in found}
        why_not = next(iter(_duplicates(places)), "") or _broken_path(found, places)
        speed = speed_text(_speed(found, network) or None)
        if not why_not:
            notes.append(f"network {network} ({speed})")
            return Choice(places, tuple(notes))
        notes.append(f"network {network} ({speed}) not used: {why_not}")
    names = ", ".join(host.host.name for host in found)
    problem = f"no network on which all of {names} can connect to each other"
    advice = "set ip= or interface= on their lines, or NETWORK_INTERFACE"
    return Choice({}, tuple(notes), (f"{problem} ({advice})", *notes))


def _place(found: FoundHost, network: ipaddress.IPv4Network, fixed: Mapping[str, Place]) -> Place:
    if found.host.name in fixed:
        return fixed[found.host.name]
    link = _on(found, network)
    return Place(ip=link.ip, interface=link.name, speed_mbit=link.speed_mbit)


def _broken_path(found: Sequence[FoundHost], places: Mapping[str, Place]) -> str:
    for host in found:
        for other in found:
            ip = places[other.host.name].ip
            reason = host.reach.get(ip, "") if other is not host else ""
            if reason:
                return f"{host.host.name} cannot reach {other.host.name} at {ip}: {reason}"
    return ""


def _duplicates(places: Mapping[str, Place]) -> tuple[str, ...]:
    owners: dict[str, list[str]] = {}
    for name, place in places.items():
        owners.setdefault(place.ip, []).append(name)
    return tuple(
        f"{' and '.join(names)} have the same address {ip}"
        for ip, names in owners.items()
        if len(names) > 1
    )
