"""Ray's command lines, and what a cluster says of itself."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.builders import PORTS
from vllmdeploy.core.command import Command, Result
from vllmdeploy.tools import ray
from vllmdeploy.tools.ray import ExpectedNode, RayCluster, RayNode

COMMON = (
    "--node-manager-port=10010 --object-manager-port=10011 --runtime-env-agent-port=10012"
    " --dashboard-agent-grpc-port=10013 --dashboard-agent-listen-port=52365"
    " --metrics-export-port=10014 --min-worker-port=20000 --max-worker-port=20999"
)


def test_a_head_pins_every_port() -> None:
    argv = ray.start_head(ip="10.0.0.1", name="gpu-01", ports=PORTS, cards=("--num-gpus=8",))
    assert " ".join(argv) == (
        "ray start --block --head --node-ip-address=10.0.0.1 --node-name=gpu-01 --port=6379"
        " --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=8265"
        f" --ray-client-server-port=10001 {COMMON} --num-gpus=8 --disable-usage-stats"
    )


def test_a_worker_names_its_head() -> None:
    argv = ray.start_worker(head_ip="10.0.0.1", ip="10.0.0.2", name="b", ports=PORTS, cards=())
    assert " ".join(argv) == (
        "ray start --block --address=10.0.0.1:6379 --node-ip-address=10.0.0.2 --node-name=b"
        f" {COMMON} --disable-usage-stats"
    )


def test_a_hostile_name_stays_one_word() -> None:
    argv = ray.start_worker(head_ip="$(id)", ip="; id", name="-x y", ports=PORTS, cards=("`id`",))
    assert argv[3:6] == ("--address=$(id):6379", "--node-ip-address=; id", "--node-name=-x y")


def test_the_heads_ports_are_the_workers_and_more() -> None:
    assert set(PORTS.of_worker) < set(PORTS.of_head)
    assert len(set(PORTS.of_head)) == len(PORTS.of_head)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.60.0", (2, 60, 0)),
        ("2.44.1.post1", (2, 44, 1)),
        ("3.0.0rc1", (3, 0)),
        ("?", ()),
        ("", ()),
        ("2.²", (2,)),
        ("9" * 5000, ()),
    ],
)
def test_a_version_ends_where_its_numbers_do(text: str, numbers: tuple[int, ...]) -> None:
    assert ray.version(text) == numbers


def said(*nodes: object, problem: object = "") -> Result:
    return Result(0, "warning\n" + json.dumps({"nodes": nodes, "problem": problem}) + "\n")


def node(name: str, ip: str, cards: float, *, alive: bool = True) -> dict[str, object]:
    return {"name": name, "ip": ip, "alive": alive, "resources": {"GPU": cards}, "used": {}}


def test_nodes_are_read() -> None:
    fact = ray.cluster(Command(("ctl", "nodes")))
    seen = fact.parse(said(node("a", "10.0.0.1", 2.0), node("b", "10.0.0.2", 2.0, alive=False)))
    assert list(seen.alive()) == ["a"]
    assert seen.nodes[0] == RayNode(
        name="a", ip="10.0.0.1", alive=True, resources={"GPU": 2.0}, used={}
    )
    assert seen.nodes[0].cards("GPU") == 2
    assert seen.nodes[0].cards("NPU") == 0


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(3, "", "no warden answers\n\n"), "no warden answers"),
        (Result(0), "no answer"),
        (Result(0, "{}"), "{}"),
        (Result(0, '{"nodes": {"a": 1}}'), '{"nodes": {"a": 1}}'),
        (said(problem="GCS is starting"), "GCS is starting"),
    ],
)
def test_an_answer_without_nodes_is_a_reason(result: Result, problem: str) -> None:
    assert ray.parse_cluster(result) == RayCluster(problem=problem)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "8", None, True, [8]])
def test_a_number_of_cards_that_is_none_counts_as_no_card(value: object) -> None:
    seen = ray.parse_cluster(said({**node("a", "1", 0), "resources": {"GPU": value}}))
    assert seen.nodes[0].cards("GPU") == 0


def test_whatever_is_missing_is_named() -> None:
    expected = [
        ExpectedNode(name=name, ip=ip, cards=cards, resource="GPU")
        for name, ip, cards in (
            ("a", "10.0.0.1", 2),
            ("b", "10.0.0.2", 2),
            ("c", "10.0.0.3", 2),
            ("d", "127.0.0.1", 0),
            ("e", "10.0.0.5", 2),
        )
    ]
    seen = ray.parse_cluster(
        said(
            node("a", "10.0.0.1", 2),
            node("b", "192.168.0.2", 2),
            node("c", "10.0.0.3", 1),
            node("d", "10.0.0.4", 0),
            node("e", "10.0.0.5", 2, alive=False),
        )
    )
    assert ray.still_missing(expected, seen) == (
        "b joined as 192.168.0.2 instead of 10.0.0.2",
        "c brings 1 GPU instead of 2",
        "e (10.0.0.5) is not in the cluster",
    )


JSON = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["nodes", "ip"]), inner),
)


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_no_answer_ends_the_reading(text: str) -> None:
    for seen in ray.parse_cluster(Result(0, text)).nodes:
        seen.cards("GPU")
    ray.version(text)
