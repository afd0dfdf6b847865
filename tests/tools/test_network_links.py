"""Interfaces, RDMA devices and reach: captured texts of many kinds, and this machine's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools.network import LINKS, Interface, Links, reach

MANY = """\
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth0\\       valid_lft forever
2: eth0    inet 10.0.0.9/24 scope global secondary eth0:1\\       valid_lft forever
3: bond0.100@bond0    inet 10.1.0.1/16 scope global bond0.100
4: eno5@if9:    inet 10.2.0.1/22 scope global eno5
5: ib0    inet 10.9.0.1/24 scope global ib0
6: tun0    inet 10.8.0.1 peer 10.8.0.2/32 scope global tun0
7: usb0    inet 169.254.3.1/24 scope link usb0
8: docker0    inet 172.17.0.1/16 scope global docker0
9: br-0123456789ab    inet 172.18.0.1/16 scope global br-0123456789ab
10: br-lan    inet 10.3.0.1/24 scope global br-lan
11: lom0    inet 10.4.0.1/24 scope global lom0
12: podman0    inet 10.88.0.1/16 scope global podman0
13: eth7    inet6 fe80::1/64 scope link
14: bad0    inet 10.0.0.300/24 scope global
15: bad1    inet 10.0.0.3/240 scope global
default via 10.0.0.254 dev eth0.7@eth0 proto static metric 100
speed eth0 10000
speed bond0.100 4294967295
speed eno5 65535
speed ib0 200000
speed br-lan -1
speed lom0 ²
rdma mlx5_0 4: ACTIVE
rdma mlx5_0 4: ACTIVE
rdma mlx5_1 1: DOWN
rdma mlx5_2 5: ACTIVE_DEFER
rdma
speed eth0
"""


def links(text: str) -> Links:
    return LINKS.parse(Result(0, text))


def test_every_kind_of_interface_is_read() -> None:
    found = links(MANY)
    assert [f"{one.name} {one.ip}/{one.prefix} {one.speed_mbit}" for one in found.interfaces] == [
        "lo 127.0.0.1/8 None",
        "eth0 10.0.0.1/24 10000",
        "eth0 10.0.0.9/24 10000",
        "bond0.100 10.1.0.1/16 None",
        "eno5 10.2.0.1/22 None",
        "ib0 10.9.0.1/24 200000",
        "tun0 10.8.0.1/32 None",
        "usb0 169.254.3.1/24 None",
        "docker0 172.17.0.1/16 None",
        "br-0123456789ab 172.18.0.1/16 None",
        "br-lan 10.3.0.1/24 None",
        "lom0 10.4.0.1/24 None",
        "podman0 10.88.0.1/16 None",
    ]
    assert found.default_interface == "eth0.7"
    assert found.rdma == ("mlx5_0", "mlx5_2")


def test_containers_bridges_and_link_local_addresses_are_not_the_fleets() -> None:
    ours = dict.fromkeys(one.name for one in links(MANY).interfaces if one.for_fleet)
    assert list(ours) == ["eth0", "bond0.100", "eno5", "ib0", "tun0", "br-lan", "lom0"]


def test_interfaces_are_found_by_address_and_by_name() -> None:
    found = links(MANY)
    by_ip, by_name = found.with_ip("10.0.0.9"), found.named("eno5")
    assert by_ip is not None
    assert by_name is not None
    assert (by_ip.name, str(by_name.network)) == ("eth0", "10.2.0.0/22")
    assert (found.with_ip("1.2.3.4"), found.named("eth9")) == (None, None)


def test_a_host_without_iproute_says_so() -> None:
    assert links("problem there is no `ip` on it: install iproute2\n") == Links(
        problem="there is no `ip` on it: install iproute2"
    )


def test_this_machines_own_links_are_read() -> None:
    found = LINKS.parse(LocalShell("here").run(LINKS.command))
    assert Interface(name="lo", ip="127.0.0.1", prefix=8) in [
        replace(one, speed_mbit=None) for one in found.interfaces
    ]
    assert found.problem == ""


def test_the_question_itself_notices_that_ip_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = LINKS.parse(LocalShell("here").run(LINKS.command))
    assert found == Links(problem="there is no `ip` on it: install iproute2")


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        yield door.getsockname()[1]


def tried(port: int, *ips: str) -> dict[str, str]:
    fact = reach(ips, port)
    return fact.parse(LocalShell("here").run(fact.command))


def test_an_open_and_a_closed_port_both_prove_the_path(listening: int) -> None:
    assert tried(listening, "127.0.0.1", "127.0.0.2") == {"127.0.0.1": "", "127.0.0.2": ""}


def test_no_way_there_is_said_in_the_systems_words() -> None:
    # A broadcast address takes no connection, whatever network this machine is in.
    assert tried(9, "255.255.255.255") == {"255.255.255.255": "Network is unreachable"}


@pytest.mark.parametrize("there", [("timeout", "python3"), ("bash", "python3"), ("python3",)])
def test_it_is_tried_with_what_the_host_has(
    there: tuple[str, ...], listening: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"bash": "/bin/bash", "timeout": "/usr/bin/timeout", "python3": "/usr/bin/python3"}
    if not Path(paths["python3"]).exists():
        pytest.skip("no python3 in /usr/bin")
    for name in ("sh", "tail"):
        (tmp_path / name).symlink_to({"sh": "/bin/sh", "tail": "/usr/bin/tail"}[name])
    for name in there:
        (tmp_path / name).symlink_to(paths[name])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tried(listening, "127.0.0.1") == {"127.0.0.1": ""}


def test_an_address_that_cannot_be_tried_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tried(9, "127.0.0.1") == {}


def test_a_hostile_address_stays_an_argument(tmp_path: Path) -> None:
    tried(9, f"$(touch {tmp_path}/ran); touch {tmp_path}/ran")
    assert list(tmp_path.iterdir()) == []


def test_reach_reads_reasons() -> None:
    fact = reach(["10.0.0.2"], 22)
    said = "10.0.0.2 yes\n10.0.0.3 no timed out\n10.0.0.4 no\n10.0.0.5 unknown\nnoise\n"
    assert fact.parse(Result(0, said)) == {
        "10.0.0.2": "",
        "10.0.0.3": "timed out",
        "10.0.0.4": "no connection",
    }


WORDS = st.sampled_from(
    ["1:", "eth0", "inet", "default", "dev", "speed", "rdma", "ACTIVE", "\n", "10.0.0.1/²", "٣"]
)


@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join)))
def test_no_text_ends_the_reading(text: str) -> None:
    for one in links(text).interfaces:
        assert one.network.prefixlen == one.prefix
        assert one.for_fleet in (True, False)
    reach([], 1).parse(Result(0, text))


def having(*addresses: str) -> Links:
    return Links(
        interfaces=tuple(
            Interface(name=f"eth{number}", ip=ip, prefix=int(prefix))
            for number, (ip, _, prefix) in enumerate(one.partition("/") for one in addresses)
        )
    )


def test_addresses_are_tried_that_two_hosts_may_use_between_them() -> None:
    one = having("10.0.0.1/24", "10.1.0.1/24")
    other = having("10.0.0.2/24", "10.2.0.2/24", "10.1.0.2/16", "169.254.3.1/16")
    assert one.may_use(other, named=False) == ["10.0.0.2"]
    # Who names addresses may have routers in between.
    assert one.may_use(other, named=True) == ["10.0.0.2", "10.2.0.2", "10.1.0.2"]
    assert one.may_use(having("10.3.0.1/24"), named=False) == []
