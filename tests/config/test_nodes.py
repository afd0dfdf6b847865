"""worker_nodes.txt as people write it, and as nobody should."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.config import nodes
from vllmdeploy.config.values import fault
from vllmdeploy.core.host import Host


def one(text: str) -> Host:
    found = nodes.parse(text, name="nodes.txt")
    assert found.problems == ()
    (host,) = found.hosts
    return host


def problems(text: str, *accelerators: str) -> tuple[str, ...]:
    return nodes.parse(text, name="n", accelerators=accelerators).problems


def test_the_plain_list_of_addresses_is_valid() -> None:
    found = nodes.parse("\ufeff# workers\r\n10.0.0.2\r\n\r\n10.0.0.3 # second\r\n", name="n")
    assert found == nodes.Nodes(
        (
            Host(name="10.0.0.2", address="10.0.0.2", source="n:2"),
            Host(name="10.0.0.3", address="10.0.0.3", source="n:4"),
        )
    )


def test_a_line_can_say_everything() -> None:
    line = (
        "root@gpu-02:2222 ip=10.0.0.2 interface=ib0 group=hygon accelerator=hygon "
        "gpus=0,2-3 ray_gpus=2 spare=no head=yes"
    )
    assert one(line) == Host(
        name="gpu-02:2222",
        address="gpu-02",
        user="root",
        port=2222,
        group="hygon",
        ip="10.0.0.2",
        interface="ib0",
        accelerator="hygon",
        gpus=(0, 2, 3),
        ray_gpus=2,
        head=True,
        source="nodes.txt:1",
    )


@pytest.mark.parametrize(
    ("text", "name", "address", "user", "port"),
    [
        ("gpu_1.lan", "gpu_1.lan", "gpu_1.lan", None, None),
        ("me@corp.example@gpu", "gpu", "gpu", "me@corp.example", None),
        ("[2001:DB8::1]", "[2001:DB8::1]", "2001:db8::1", None, None),
        ("u@[fe80::1%eth0]:22", "[fe80::1%eth0]:22", "fe80::1%eth0", "u", 22),
    ],
)
def test_a_place_is_a_user_a_host_and_a_port(
    text: str, name: str, address: str, user: str | None, port: int | None
) -> None:
    host = one(text)
    assert (host.name, host.address, host.user, host.port) == (name, address, user, port)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-oProxyCommand=id", "'-oProxyCommand=id' is not a host name or IP address"),
        ("a;id", "'a;id' is not a host name or IP address"),
        ("$(id)", "'$(id)' is not a host name or IP address"),
        ("-x@a", "'-x' is not a user name"),
        ("@a", "'' is not a user name"),
        ("root@", "'' is not a host name or IP address"),
        ("10.0.0.256", "'10.0.0.256' is not an IPv4 address"),
        ("10.0.1", "'10.0.1' is not an IPv4 address"),
        ("2001:db8::1", "'2001:db8::1': write an IPv6 address in brackets, [2001:db8::1]"),
        ("[2001:db8::1", "'[2001:db8::1' is not [IPv6 address] or [IPv6 address]:port"),
        ("[::1]x", "'[::1]x' is not [IPv6 address] or [IPv6 address]:port"),
        ("[10.0.0.1]", "'10.0.0.1' is not an IPv6 address"),
        ("[fe80::1%a;b]", "'fe80::1%a;b' names no interface after its %"),
        ("a:", "'' is not a port: a whole number from 1 to 65535"),
        ("a:0", "'0' is not a port: a whole number from 1 to 65535"),
        ("a:70000", "'70000' is not a port: a whole number from 1 to 65535"),
        ("a b", "'b' is not key=value; write one host a line"),
        ("a gruop=x", "unknown key 'gruop'; did you mean group?"),
        (
            "a zz=1",
            "unknown key 'zz'; known are ip, interface, group, accelerator, gpus, ray_gpus, "
            "spare, head",
        ),
        ("a ip=x", "ip: 'x' is not an IP address"),
        ("a ip=10.0.0.1 ip=10.0.0.2", "ip: is there twice"),
        ("a interface=a/b", "interface: 'a/b' is not a network interface"),
        ("a group=A", "group: 'A' is not a group name: up to 31 of a-z 0-9 _ -"),
        ("a accelerator=-", "accelerator: '-' is not an accelerator"),
        ("a gpus=", "gpus: no card in it: write 0,1 or 0-3"),
        ("a gpus=0,x", "gpus: 'x' is not a card number: a whole number from 0 to 1023"),
        ("a gpus=0,0", "gpus: card 0 is there twice"),
        ("a gpus=3-0", "gpus: '3-0' runs backwards: write it as LOW-HIGH"),
        ("a gpus=0-1023,0-1023", "gpus: more than 1024 cards"),
        ("a ray_gpus=-1", "ray_gpus: '-1' is not a number: a whole number from 0 to 1024"),
        ("a gpus=0 ray_gpus=2", "ray_gpus: 2 is more than the 1 of gpus="),
        ("a spare=perhaps", "spare: 'perhaps' is neither yes nor no: write 1 or 0, true or false"),
        ("a head=yes spare=yes", "head=yes and spare=yes: a spare host cannot be a head"),
        ("a\x07", "holds the control or invisible character U+0007"),
    ],
)
def test_a_line_that_means_nothing_is_refused(line: str, said: str) -> None:
    assert problems(line) == (f"n:1: {said}",)


def test_every_option_is_explained_by_an_example_that_reads() -> None:
    one("gpu-02 " + " ".join(example for example in nodes.MEANINGS if "spare" not in example))
    one("gpu-02 spare=yes")
    said = problems("a zz=1")[0]
    known = said.partition("known are ")[2].split(", ")
    assert sorted(known) == sorted(example.partition("=")[0] for example in nodes.MEANINGS)


def test_a_vendor_that_does_not_exist_is_refused_where_the_vendors_are_known() -> None:
    assert problems("a accelerator=nvida", "nvidia", "hygon") == (
        "n:1: accelerator: 'nvida' is not one of nvidia, hygon; did you mean nvidia?",
    )
    assert problems("a accelerator=hygon\nb accelerator=auto\nc", "nvidia", "hygon") == ()


def test_one_machine_on_two_lines_names_both() -> None:
    text = "gpu-1\nGPU-1:22\n10.0.0.1\nx ip=10.0.0.1\ny ip=10.0.0.9\nz ip=10.0.0.9\n"
    assert problems(text) == (
        "n:2: GPU-1:22 is already in line 1",
        "n:4: x has the address 10.0.0.1 of 10.0.0.1 in line 3",
        "n:6: z has the address 10.0.0.9 of y in line 5",
    )


def test_two_ports_of_one_address_are_two_machines() -> None:
    assert problems("gate:2201\ngate:2202\n10.0.0.1:2201\n10.0.0.1:2202\n") == ()


@settings(max_examples=2500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="abg01 =.:@[]%-;$#\t\r\n\0'\"", max_size=60),
        st.lists(
            st.sampled_from(["ip=", "gpus=", "group=", "head=", "10.0.0.1", " ", "0,1", "yes", "x"])
        ).map("".join),
    )
)
def test_any_text_becomes_safe_hosts_or_is_refused_with_its_line(text: str) -> None:
    found = nodes.parse(text, name="n")
    for host in found.hosts:
        assert fault(host.address) is None
        assert host.address[0].isalnum() or host.address[0] in "_:"
        assert not set(host.address) & set(" ;$`'\"|&<>()@/\\")
    for said in found.problems:
        where, line, _ = said.split(":", 2)
        assert where == "n"
        assert 1 <= int(line) <= text.count("\n") + 1


def test_reading_hosts_does_not_load_pydantic() -> None:
    code = (
        "import sys, vllmdeploy.config.nodes, vllmdeploy.config.envfile, "
        "vllmdeploy.config.fleet, vllmdeploy.config.profiles\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
