"""The rig's wire: two bridges in a namespace of their own, so that no firewall of this machine sees
what hosts say to each other, and one address through which the operator reaches them.

Everything is named after the rig's number, which is also the third byte of its addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.rig.programs import RigError, run, until

SUBNETS = {"a": "10.77.{number}", "b": "10.78.{number}"}
OPERATOR = 1
FIRST_HOST = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One interface of a host. `rate` is what it really carries (as tc words it), `speed_mbit` what
    the kernel says of it."""

    name: str = "eth0"
    subnet: str = "a"
    rate: str | None = None
    speed_mbit: int | None = None


def address(number: int, subnet: str, last: int) -> str:
    return f"{SUBNETS[subnet].format(number=number)}.{last}"


def namespace(number: int, host: str) -> str:
    return f"vr{number}-{host}"


def _ip(*argv: str) -> None:
    run(("ip", *argv))


def lay_wire(number: int) -> None:
    """The bridges, and the operator's end in the root namespace."""
    wire = namespace(number, "wire")
    _ip("netns", "add", wire)
    for subnet in SUBNETS:
        _ip("-n", wire, "link", "add", f"br-{subnet}", "type", "bridge")
        _ip("-n", wire, "link", "set", f"br-{subnet}", "up")
    operator = f"vr{number}"
    _ip("link", "add", operator, "type", "veth", "peer", "name", "operator", "netns", wire)
    _ip("-n", wire, "link", "set", "operator", "master", "br-a", "up")
    _ip("address", "add", f"{address(number, 'a', OPERATOR)}/24", "dev", operator)
    _ip("link", "set", operator, "up")


def plug_in(number: int, host: str, last: int, nics: tuple[Nic, ...]) -> None:
    """A namespace for one host, each of its interfaces on its bridge, the first with the default
    route."""
    own, wire = namespace(number, host), namespace(number, "wire")
    _ip("netns", "add", own)
    _ip("-n", own, "link", "set", "lo", "up")
    for nic in nics:
        far = f"{last}-{nic.name}"
        _ip(
            *("-n", own, "link", "add", nic.name, "type", "veth"),
            "peer",
            "name",
            far,
            "netns",
            wire,
        )
        _ip("-n", wire, "link", "set", far, "master", f"br-{nic.subnet}", "up")
        _ip("-n", own, "address", "add", f"{address(number, nic.subnet, last)}/24", "dev", nic.name)
        _ip("-n", own, "link", "set", nic.name, "up")
        if nic.rate:
            for place, device in ((own, nic.name), (wire, far)):
                limit = ("tbf", "rate", nic.rate, "burst", "256kb", "latency", "50ms")
                run(("tc", "-n", place, "qdisc", "add", "dev", device, "root", *limit))
    _ip("-n", own, "route", "add", "default", "via", address(number, nics[0].subnet, OPERATOR))


def set_link(number: int, last: int, nic: str, *, up: bool) -> None:
    """Pull a host's cable, or put it back: it is the far end that goes down, as with a switch."""
    far = f"{last}-{nic}"
    _ip("-n", namespace(number, "wire"), "link", "set", far, "up" if up else "down")


def namespaces(number: int) -> tuple[str, ...]:
    """Those that this number's rig, living or dead, has left."""
    folder = Path("/run/netns")
    return tuple(sorted(path.name for path in folder.glob(f"vr{number}-*")))


def processes(name: str) -> tuple[int, ...]:
    return tuple(int(pid) for pid in run(("ip", "netns", "pids", name)).stdout.split())


def remove(name: str) -> None:
    """End what lives in a namespace, by its process ids, then the namespace."""

    def emptied() -> bool:
        for pid in processes(name):
            run(("kill", "-KILL", str(pid)), check=False)
        return not processes(name)

    try:
        until(f"no process left in {name}", emptied)
    except RigError as stuck:
        raise RigError(f"{stuck}: {processes(name)}") from stuck
    _ip("netns", "delete", name)
