"""Heads, groups and hosts of one fleet."""

from __future__ import annotations

from vllmdeploy.config import nodes
from vllmdeploy.config.fleet import assemble
from vllmdeploy.core.host import Fleet, Host


def joined(
    text: str, *, head_host: str | None = None, head_ip: str | None = None
) -> tuple[Fleet, tuple[str, ...]]:
    found = nodes.parse(text, name="n")
    assert found.problems == ()
    return assemble(found.hosts, head_host=head_host, head_ip=head_ip, this_machine="desk")


def fleet(text: str, *, head_host: str | None = None, head_ip: str | None = None) -> Fleet:
    whole, problems = joined(text, head_host=head_host, head_ip=head_ip)
    assert problems == ()
    return whole


def problems(text: str, *, head_host: str | None = None, head_ip: str | None = None) -> object:
    return joined(text, head_host=head_host, head_ip=head_ip)[1]


def test_without_head_host_this_machine_is_the_head() -> None:
    assert fleet("a", head_ip="10.0.0.1").hosts == (
        Host(name="desk", address="localhost", head=True, ip="10.0.0.1", source="this machine"),
        Host(name="a", address="a", source="n:1"),
    )


def test_head_host_is_the_head_of_the_first_group() -> None:
    assert fleet("a", head_host="root@gpu-01:2222").head == Host(
        name="gpu-01:2222",
        address="gpu-01",
        user="root",
        port=2222,
        head=True,
        source="HEAD_HOST",
    )


def test_the_heads_own_line_says_what_may_be_used_of_it() -> None:
    whole = fleet("a\nme@gpu-01 head=yes gpus=0,1 ip=10.0.0.1", head_host="root@gpu-01:2222")
    assert whole.head == Host(
        name="gpu-01",
        address="gpu-01",
        user="root",
        port=2222,
        ip="10.0.0.1",
        gpus=(0, 1),
        head=True,
        source="n:2",
    )
    assert [host.name for host in whole.hosts] == ["gpu-01", "a"]


def test_a_head_line_of_the_default_group_is_the_head_where_head_host_is_not_set() -> None:
    whole = fleet("a\nb head=yes")
    assert [host.name for host in whole.hosts] == ["b", "a"]


def test_this_machine_may_have_a_line_that_says_it_is_the_head() -> None:
    assert fleet("desk head=yes gpus=0").head.gpus == (0,)


def test_each_further_group_has_a_head_of_its_own() -> None:
    whole = fleet("a\nh1 group=hygon\nh2 group=hygon head=yes", head_host="gpu-01")
    assert whole.groups == ("default", "hygon")
    assert [host.name for host in whole.group("hygon")] == ["h2", "h1"]


def test_the_head_is_no_worker() -> None:
    assert problems("gpu-01", head_host="root@gpu-01") == (
        "n:1: gpu-01 is the head (HEAD_HOST): remove the line, or add head=yes to it",
    )
    assert problems("localhost") == (
        "n:1: localhost is this machine, the head: remove the line, or add head=yes to it",
    )


def test_another_port_of_this_machine_leads_to_another_machine() -> None:
    assert [host.name for host in fleet("localhost:2201\nlocalhost:2202").hosts] == [
        "desk",
        "localhost:2201",
        "localhost:2202",
    ]


def test_the_heads_address_is_nobody_elses() -> None:
    assert problems("b\na ip=10.0.0.1", head_ip="10.0.0.1") == (
        "n:2: a has the address 10.0.0.1 of the head (HEAD_IP)",
    )
    assert problems("desk head=yes ip=10.0.0.2", head_ip="10.0.0.1") == (
        "n:1: ip=10.0.0.2 of the head is not HEAD_IP, 10.0.0.1",
    )


def test_a_group_has_one_head() -> None:
    text = "a head=yes\nb group=x\nc group=y head=yes\nd group=y head=yes\n"
    assert problems(text, head_host="gpu-01") == (
        "n:1: head=yes: the head of group default is gpu-01 (HEAD_HOST)",
        "n:4: head=yes: the head of group y is c (n:3)",
        "n:2: group=x: no host of this group has head=yes",
    )


def test_two_groups_never_share_an_image_key() -> None:
    assert problems("a group=x-1 head=yes\nb group=x_1 head=yes") == (
        "n:2: group=x_1: too like group x-1, both would have the image IMAGE_X_1",
    )


def test_gateway_hosts_are_hosts_of_the_fleet_or_run_nothing_else() -> None:
    found = nodes.parse("gpu-02 ip=10.0.0.2\n", name="n")
    whole, problems = assemble(
        found.hosts,
        head_host="gpu-01",
        head_ip=None,
        this_machine="desk",
        gateway_hosts=("gpu-02", "ann@front-01:2222"),
    )
    assert problems == ()
    assert [host.name for host in whole.hosts] == ["gpu-01", "gpu-02"]
    assert [host.name for host in whole.offering] == ["gpu-02", "front-01:2222"]
    (front,) = whole.fronts
    assert (front.user, front.address, front.port) == ("ann", "front-01", 2222)
    assert whole.groups == ("default",)
    assert [host.name for host in whole.everyone] == ["gpu-01", "gpu-02", "front-01:2222"]


def test_without_gateway_hosts_the_head_offers_the_api() -> None:
    assert [host.name for host in fleet("a", head_host="gpu-01").offering] == ["gpu-01"]
