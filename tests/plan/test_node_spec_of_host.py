"""One host's Ray node: what differs between hosts, and what is said to each."""

from __future__ import annotations

from dataclasses import replace

from tests.plan.builders import PORTS, bare, decided, two_hosts, wanted
from vllmdeploy.core.card import ContainerAccess
from vllmdeploy.plan.node import node_spec, token_path
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools.network import Links
from vllmdeploy.tools.system import System


def specs(found: list[FoundHost], **changes: object) -> list[dict[str, str]]:
    what = wanted(**changes)
    members = decided(what, found)["default"].members
    return [dict(node_spec(what, member, generation=1).environment) for member in members]


def test_every_host_has_its_own_address_and_the_same_rules() -> None:
    first, second = specs(two_hosts())
    assert (first["VLLM_HOST_IP"], second["VLLM_HOST_IP"]) == ("10.0.0.1", "10.0.0.2")
    own = {"VLLM_HOST_IP", "NO_PROXY", "no_proxy", *PORTS.of_head_by_environment}
    assert {key: first[key] for key in first.keys() - own} == {
        key: second[key] for key in second.keys() - own
    }


def test_the_fleet_is_never_asked_through_a_proxy() -> None:
    _, second = specs(two_hosts())
    assert second["NO_PROXY"] == "localhost,127.0.0.1,10.0.0.1,10.0.0.2,10.0.0.0/24"


def test_a_proxy_without_a_known_network_still_leaves_the_host_out() -> None:
    found = bare("a", "10.0.0.1", head=True, links=Links())
    (only,) = specs([found])
    assert only["no_proxy"] == "localhost,127.0.0.1"


def test_a_proxy_of_the_host_is_taken_over_and_the_users_word_wins() -> None:
    system = System(machine="x86_64", proxies=(("http_proxy", "http://p:1"),))
    found = bare("a", "10.0.0.1", head=True, system=system)
    (only,) = specs([found], environment={"http_proxy": ""})
    assert only["http_proxy"] == ""


def test_a_node_knows_its_group_its_cards_and_its_head() -> None:
    what = wanted(ray_cpus=4)
    head, worker = decided(what, two_hosts())["default"].members
    spec = node_spec(what, worker, generation=7)
    assert (spec.name, spec.role, spec.group, spec.generation, spec.cards, spec.ray_cards) == (
        "vllm-ray-worker",
        "ray-worker",
        "default",
        7,
        (0, 1),
        2,
    )
    assert spec.ray_address == "10.0.0.1:6379"
    assert spec.command[-3:] == ("--num-gpus=2", "--num-cpus=4", "--disable-usage-stats")
    assert head.name == "gpu-01"


def test_a_node_without_cards_gets_no_devices() -> None:
    found = bare("a", "10.0.0.1", head=True, ray_gpus=0)
    (member,) = decided(wanted(), [found])["default"].members
    assert member.container_access(by_cdi=False) == ContainerAccess()
    with_rdma = replace(found, links=replace(found.links, rdma=("mlx5_0",)))
    (member,) = decided(wanted(), [with_rdma])["default"].members
    assert member.fabric.rdma_devices == ("mlx5_0",)


def test_the_token_is_a_file() -> None:
    assert token_path("/run/s") == {"RAY_AUTH_TOKEN_PATH": "/run/s/ray_token"}
