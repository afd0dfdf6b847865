"""Which address every host uses: the user's word first, then the fastest network that works."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import bare, link
from vllmdeploy.plan.network import Choice, choose
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools.network import Interface, Links

IB = 200_000


def host(
    name: str, *links: Interface, reach: dict[str, str] | None = None, **changes: Any
) -> FoundHost:
    found = bare(name, links[0].ip if links else "127.0.0.1", head=name == "a", **changes)
    return replace(
        found,
        links=Links(interfaces=links, default_interface=links[0].name if links else ""),
        reach=reach or {},
    )


def pair(*, reach: dict[str, str] | None = None, **changes: Any) -> list[FoundHost]:
    """Two hosts with Ethernet and InfiniBand."""
    return [
        host("a", link("10.0.0.1"), link("10.9.0.1", "ib0", IB), reach=reach),
        host("b", link("10.0.0.2"), link("10.9.0.2", "ib0", IB), **changes),
    ]


def said(choice: Choice) -> list[str]:
    places = [f"{name}: {place}" for name, place in choice.places.items()]
    return [*places, *choice.notes, *(f"! {problem}" for problem in choice.problems)]


NO_WAY = "(set ip= or interface= on their lines, or NETWORK_INTERFACE)"


def with_ip(found: FoundHost, ip: str) -> FoundHost:
    return replace(found, host=replace(found.host, ip=ip))


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        pytest.param(
            pair(),
            {},
            [
                "a: 10.9.0.1 on ib0, 200 Gbit/s",
                "b: 10.9.0.2 on ib0, 200 Gbit/s",
                "network 10.9.0.0/24 (200 Gbit/s)",
            ],
            id="the fastest network that all have",
        ),
        pytest.param(
            pair(reach={"10.9.0.2": "timed out"}),
            {},
            [
                "a: 10.0.0.1 on eth0, 10 Gbit/s",
                "b: 10.0.0.2 on eth0, 10 Gbit/s",
                "network 10.9.0.0/24 (200 Gbit/s) not used: a cannot reach b at 10.9.0.2:"
                " timed out",
                "network 10.0.0.0/24 (10 Gbit/s)",
            ],
            id="the next one where the fastest does not connect",
        ),
        pytest.param(
            pair(reach={"10.9.0.2": "timed out", "10.0.0.2": "No route to host"}),
            {},
            [
                "network 10.9.0.0/24 (200 Gbit/s) not used: a cannot reach b at 10.9.0.2:"
                " timed out",
                "network 10.0.0.0/24 (10 Gbit/s) not used: a cannot reach b at 10.0.0.2:"
                " No route to host",
                f"! no network on which all of a, b can connect to each other {NO_WAY}",
                "! network 10.9.0.0/24 (200 Gbit/s) not used: a cannot reach b at 10.9.0.2:"
                " timed out",
                "! network 10.0.0.0/24 (10 Gbit/s) not used: a cannot reach b at 10.0.0.2:"
                " No route to host",
            ],
            id="none connects",
        ),
        pytest.param(
            [host("a", link("10.0.0.1")), host("b", link("10.1.0.1"))],
            {},
            [f"! no network on which all of a, b can connect to each other {NO_WAY}"],
            id="no shared network",
        ),
        pytest.param(
            [host("a", link("10.0.0.1")), host("b")],
            {},
            [f"! no network on which all of a, b can connect to each other {NO_WAY}"],
            id="a host without any network",
        ),
        pytest.param(
            [
                host("a", link("10.0.0.1")),
                replace(host("b"), links=Links(problem="there is no `ip` on it")),
            ],
            {},
            ["! b: there is no `ip` on it"],
            id="a host that cannot say",
        ),
        pytest.param(
            [
                host("a", link("10.0.0.1"), link("10.88.0.1", "fast0", IB)),
                host("b", link("10.0.0.2"), link("10.88.0.1", "fast0", IB)),
            ],
            {},
            [
                "a: 10.0.0.1 on eth0, 10 Gbit/s",
                "b: 10.0.0.2 on eth0, 10 Gbit/s",
                "network 10.88.0.0/24 (200 Gbit/s) not used: a and b have the same address"
                " 10.88.0.1",
                "network 10.0.0.0/24 (10 Gbit/s)",
            ],
            id="a bridge that has the same address everywhere",
        ),
        pytest.param(
            pair(),
            {"interface": "eth0"},
            ["a: 10.0.0.1 on eth0, 10 Gbit/s", "b: 10.0.0.2 on eth0, 10 Gbit/s"],
            id="NETWORK_INTERFACE wins",
        ),
        pytest.param(
            pair(interface="eth0"),
            {"interface": "ib0"},
            ["a: 10.9.0.1 on ib0, 200 Gbit/s", "b: 10.0.0.2 on eth0, 10 Gbit/s"],
            id="interface= on a line wins over NETWORK_INTERFACE",
        ),
        pytest.param(
            pair(),
            {"interface": "eth9"},
            [
                "! a: no interface eth9 with an IPv4 address; it has eth0, ib0",
                "! b: no interface eth9 with an IPv4 address; it has eth0, ib0",
            ],
            id="an interface that is not there, on every host at once",
        ),
        pytest.param(
            pair(),
            {"head_ip": "10.0.0.1"},
            [
                "a: 10.0.0.1 on eth0, 10 Gbit/s",
                "b: 10.0.0.2 on eth0, 10 Gbit/s",
                "network 10.0.0.0/24 (10 Gbit/s)",
            ],
            id="HEAD_IP means its network for the others too",
        ),
        pytest.param(
            pair(),
            {"head_ip": "1.2.3.4"},
            ["! a: no interface has 1.2.3.4; it has 10.0.0.1 (eth0), 10.9.0.1 (ib0)"],
            id="HEAD_IP that the head has not",
        ),
        pytest.param(
            [host("a"), host("b", link("10.0.0.2"))],
            {"head_ip": "1.2.3.4"},
            ["! a: no interface has 1.2.3.4; it has none"],
            id="HEAD_IP of a head without network",
        ),
        pytest.param(
            [with_ip(host("a", link("10.0.0.1")), "10.0.0.1"), host("b", link("10.0.0.1"))],
            {"interface": "eth0"},
            [
                "a: 10.0.0.1 on eth0, 10 Gbit/s",
                "b: 10.0.0.1 on eth0, 10 Gbit/s",
                "! a and b have the same address 10.0.0.1",
            ],
            id="two hosts with one address",
        ),
        pytest.param(
            [
                with_ip(host("a", link("10.0.0.1"), reach={"10.1.0.2": "timed out"}), "10.0.0.1"),
                with_ip(host("b", link("10.1.0.2")), "10.1.0.2"),
            ],
            {},
            [
                "a: 10.0.0.1 on eth0, 10 Gbit/s",
                "b: 10.1.0.2 on eth0, 10 Gbit/s",
                "the given addresses are used, although a cannot reach b at 10.1.0.2: timed out",
            ],
            id="given addresses win and their trouble is said",
        ),
        pytest.param(
            [host("a", link("10.0.0.1", speed=None)), host("b", link("10.0.0.2", speed=100))],
            {},
            [
                "a: 10.0.0.1 on eth0",
                "b: 10.0.0.2 on eth0, 100 Mbit/s",
                "network 10.0.0.0/24 (unknown speed)",
            ],
            id="a network is as fast as its slowest member",
        ),
        pytest.param(
            [
                host("a", link("10.0.0.1"), link("10.5.0.1", "eth1")),
                host("b", link("10.5.0.2", "eth1"), link("10.0.0.2")),
                replace(host("c", link("10.5.0.3", "eth1"), link("10.0.0.3"))),
            ],
            {},
            [
                "a: 10.5.0.1 on eth1, 10 Gbit/s",
                "b: 10.5.0.2 on eth1, 10 Gbit/s",
                "c: 10.5.0.3 on eth1, 10 Gbit/s",
                "network 10.5.0.0/24 (10 Gbit/s)",
            ],
            id="between equals the one that hosts are known by",
        ),
        pytest.param(
            [host("a", link("10.0.0.1"), link("10.9.0.1", "ib0", IB))],
            {},
            ["a: 10.0.0.1 on eth0, 10 Gbit/s"],
            id="a single host uses the address it is known by",
        ),
        pytest.param(
            [
                replace(
                    bare("a", "gpu.example", head=True),
                    links=Links(
                        interfaces=(link("10.1.0.1", "eth1"), link("10.0.0.1")),
                        default_interface="eth0",
                    ),
                )
            ],
            {},
            ["a: 10.0.0.1 on eth0, 10 Gbit/s"],
            id="a single host known by name uses its default route",
        ),
        pytest.param(
            [
                replace(
                    bare("a", "gpu.example", head=True),
                    links=Links(
                        interfaces=(link("172.17.0.1", "docker0"), link("10.1.0.1", "eth1"))
                    ),
                )
            ],
            {},
            ["a: 10.1.0.1 on eth1, 10 Gbit/s"],
            id="a single host without a default route",
        ),
        pytest.param(
            [host("a")], {}, ["a: 127.0.0.1 on lo"], id="a single host without network is alone"
        ),
    ],
)
def test_addresses_are_chosen(
    found: list[FoundHost], options: dict[str, Any], expected: list[str]
) -> None:
    assert said(choose(found, **options)) == expected
