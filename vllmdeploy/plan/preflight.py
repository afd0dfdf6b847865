"""Reasons to refuse before anything is touched, and things worth saying."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vllmdeploy.core.spec import Role
from vllmdeploy.plan import images
from vllmdeploy.plan.cards import RayShare
from vllmdeploy.plan.executor import executor_of
from vllmdeploy.plan.network import Place
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import Wanted, WantedGroup
from vllmdeploy.tools import ray

_LEAST_FREE_MIB = 512
_CLOCK_TOLERANCE_S = 120
_RAY_ROLES = ("ray-head", "ray-worker")


def role_of(found: FoundHost) -> Role:
    return "ray-head" if found.host.head else "ray-worker"


def node_name(wanted: Wanted, found: FoundHost) -> str:
    return f"{wanted.cluster}-{role_of(found)}"


def refusals(
    wanted: Wanted, group: WantedGroup, members: Sequence[FoundHost], shares: Mapping[str, RayShare]
) -> tuple[str, ...]:
    """All reasons at once, each naming the host and what to do."""
    reasons: list[str] = []
    executor = executor_of(wanted, members)
    for found in members:
        reasons.extend(of_host(wanted, found))
        if executor == "ray":
            reasons.extend(_taken_ports(wanted, found))
        reasons.extend(shares[found.host.name].problems)
        if wanted.runtime == "docker":
            reasons.extend(images.of_image(found, executor))
        elif found.contents is not None:
            python = f"{found.host.name}: {wanted.python}"
            reasons.extend(images.of_contents(python, found, executor))
    reasons.extend(images.differences(group.name, members))
    if executor == "ray":
        reasons.extend(_authentication(wanted, group, members))
    return tuple(reasons)


def of_host(wanted: Wanted, found: FoundHost) -> Iterable[str]:
    name = found.host.name
    if wanted.runtime == "docker":
        if found.engine.problem:
            yield f"{name}: {found.engine.problem}"
        for stranger in found.strangers(wanted.cluster):
            if stranger.name == node_name(wanted, found):
                yield (
                    f"{name}: a container named {stranger.name} is there already and is not"
                    f" ours ({stranger.image}): rename it, or choose another CLUSTER_NAME"
                )
    # Cards that only /sys knows carry the same problem each.
    if found.cards.problem and all(card.problem for card in found.cards.cards):
        yield f"{name}: {found.cards.vendor or 'accelerator'}: {found.cards.problem}"
    free = found.system.state_free_mib
    if free is not None and free < _LEAST_FREE_MIB:
        yield f"{name}: {free} MiB free in {found.access.layout.root}: at least {_LEAST_FREE_MIB}"
    yield from _foreign_owner(found)


def _foreign_owner(found: FoundHost) -> Iterable[str]:
    """A node under another user must be given its folders, which only root can do."""
    contents, access = found.contents, found.access
    if contents is None or contents.uid == 0 or access.sudo_files:
        return
    if access.uid not in (0, contents.uid):
        yield (
            f"{found.host.name}: {found.image_name} runs as uid {contents.uid}, {access.user} is"
            f" {access.uid} and may not hand folders over: allow sudo, or log in as root"
        )


def _taken_ports(wanted: Wanted, found: FoundHost) -> Iterable[str]:
    """Ports that Ray will need and somebody else holds. Our own running node is not somebody."""
    if any(node.running and node.role in _RAY_ROLES for node in found.ours(wanted.cluster)):
        return
    planned = wanted.ports.of_head if found.host.head else wanted.ports.of_worker
    named: set[int] = set()
    for listener in found.listeners:
        if listener.port in planned and listener.port not in named:
            named.add(listener.port)
            yield f"{found.host.name}: {listener} (choose another in config.env)"


def needs_token(wanted: Wanted, members: Sequence[FoundHost]) -> bool:
    if executor_of(wanted, members) != "ray":
        return False
    return wanted.ray_auth != "none" and not _without_token(members)


def _without_token(members: Sequence[FoundHost]) -> list[FoundHost]:
    return [
        found
        for found in members
        if found.contents is not None
        and found.contents.ray
        and ray.version(found.contents.ray) < ray.OLDEST_WITH_TOKEN
    ]


def _authentication(
    wanted: Wanted, group: WantedGroup, members: Sequence[FoundHost]
) -> Iterable[str]:
    old = _without_token(members)
    if old and wanted.ray_auth != "none" and old[0].contents:
        yield (
            f"group {group.name}: Ray {old[0].contents.ray} has no token authentication"
            " (2.52 and later have): whoever reaches its ports runs code on the hosts."
            " Close them to all but the fleet and set RAY_AUTH=none, or take a newer image"
        )


def remarks(wanted: Wanted, members: Sequence[FoundHost], places: Mapping[str, Place]) -> list[str]:
    """What does not stop us and should be known."""
    said: list[str] = []
    clocks = [found.system.clock for found in members if found.system.clock]
    for found in members:
        name, system = found.host.name, found.system
        if system.own_address.startswith("127.") and len(members) > 1:
            interface = places[name].interface
            said.append(
                f"{name}: its own name resolves to {system.own_address};"
                f" the ranks are told to use {interface} instead"
            )
        if clocks and system.clock and system.clock - min(clocks) > _CLOCK_TOLERANCE_S:
            said.append(f"{name}: its clock is {system.clock - min(clocks)} s ahead of others")
        said += [
            f"{name}: {variable} holds a password and is not passed on"
            for variable, _ in system.proxies_with_password
        ]
        if system.selinux == "Enforcing":
            said.append(f"{name}: SELinux is enforcing; containers run with label=disable")
        said.extend(_firewall(wanted, found, places, members))
    if wanted.ray_auth == "none" and executor_of(wanted, members) == "ray":
        said.append("RAY_AUTH=none: whoever reaches Ray's ports runs code on the hosts")
    return said


def _firewall(
    wanted: Wanted,
    found: FoundHost,
    places: Mapping[str, Place],
    members: Sequence[FoundHost],
) -> Iterable[str]:
    others = [places[other.host.name].ip for other in members if other is not found]
    if not found.firewall.name or not others:
        return
    first, last = wanted.ports.workers
    ports = wanted.ports.of_head if found.host.head else wanted.ports.of_worker
    yield f"{found.host.name}: {found.firewall.name} is active; the other hosts must get through:"
    for ip in others:
        if found.firewall.name == "ufw":
            yield f"  sudo ufw allow from {ip} to any proto tcp comment vllmdeploy"
        else:
            rule = f'rule family="ipv4" source address="{ip}" accept'
            yield f"  sudo firewall-cmd --permanent --add-rich-rule='{rule}'"
    if found.firewall.name == "firewalld":
        yield "  sudo firewall-cmd --reload"
    listed = ",".join(map(str, ports))
    if executor_of(wanted, members) != "ray":
        yield "  (ENGINE_PORTS; the ranks themselves use ephemeral ports)"
        return
    yield f"  (Ray: {listed},{first}-{last}; the ranks themselves use ephemeral ports)"
