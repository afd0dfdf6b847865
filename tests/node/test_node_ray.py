from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vllmdeploy.node import ray
from vllmdeploy.node.ray import RayNode

# Shortened from answers of Ray 2.60's dashboard.
STATE = json.dumps(
    {
        "result": True,
        "msg": "",
        "data": {
            "result": {
                "total": 2,
                "result": [
                    {
                        "node_id": "1fbd",
                        "node_ip": "192.0.2.2",
                        "is_head_node": True,
                        "state": "ALIVE",
                        "node_name": "gpu-01",
                        "resources_total": {
                            "object_store_memory": 80000000.0,
                            "GPU": 2.0,
                            "node:__internal_head__": 1.0,
                        },
                    },
                    {
                        "node_id": "2ace",
                        "node_ip": "192.0.2.3",
                        "state": "DEAD",
                        "state_message": "received SIGTERM",
                        "node_name": "gpu-02",
                        "resources_total": {},
                    },
                ],
            }
        },
    }
)
USAGE = json.dumps(
    {
        "result": True,
        "data": {
            "clusterStatus": {
                "loadMetricsReport": {
                    "usageByNode": {
                        "1fbd": {
                            "GPU": [1.0, 2.0],
                            "node:InternalHead": [0.0, 1.0],
                            "objectStoreMemory": [5.0, 80000000.0],
                        }
                    }
                }
            }
        },
    }
)
HEAD = RayNode(
    name="gpu-01",
    ip="192.0.2.2",
    alive=True,
    resources={"object_store_memory": 80000000.0, "GPU": 2.0, "node:__internal_head__": 1.0},
    used={"object_store_memory": 5.0, "GPU": 1.0, "node:__internal_head__": 0.0},
    id="1fbd",
)


def test_the_dashboards_answers_are_joined() -> None:
    assert ray.parse_nodes(STATE, USAGE) == (
        HEAD,
        RayNode(name="gpu-02", ip="192.0.2.3", alive=False, id="2ace"),
    )


def test_what_is_used_may_come_later() -> None:
    (head, _) = ray.parse_nodes(STATE, '{"data": {"clusterStatus": null}}')
    assert (head.resources["GPU"], head.used) == (2.0, {})


@pytest.mark.parametrize("answer", ["{}", "[]", "null", '{"data": {"result": {"result": {}}}}'])
def test_an_answer_without_nodes_is_no_answer(answer: str) -> None:
    with pytest.raises(ValueError, match="no list of nodes"):
        ray.parse_nodes(answer, USAGE)


def test_the_living_node_of_a_name_wins_over_its_dead_self() -> None:
    dead, living = (RayNode(name="a", ip="1", alive=alive) for alive in (False, True))
    assert ray.one_per_name((dead, living, dead)) == (living,)
    assert ray.one_per_name((living, dead)) == (living,)


def test_the_gcs_helpers_line_is_read() -> None:
    row = {"name": "a", "ip": "i", "alive": True, "resources": {"GPU": 2}, "used": {"GPU": 0}}
    assert ray.parse_gcs_nodes(json.dumps([row])) == (
        RayNode(name="a", ip="i", alive=True, resources={"GPU": 2.0}, used={"GPU": 0.0}),
    )


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("ray start --head --node-ip-address=10.0.0.1 --port=7000", "10.0.0.1:7000"),
        ("ray start --head --node-ip-address 10.0.0.1", "10.0.0.1:6379"),
        ("ray start --head", ""),
        ("ray start --address=10.0.0.1:6379 --node-ip-address=10.0.0.2", "10.0.0.1:6379"),
        ("ray start --address 10.0.0.1:1 --address 10.0.0.1:2", "10.0.0.1:2"),
        ("sleep", ""),
    ],
)
def test_the_gcs_address_is_read_from_ray_start(words: str, address: str) -> None:
    assert ray.gcs_address(words.split()) == address


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ("ray start --head", "http://127.0.0.1:8265"),
        ("ray start --dashboard-host=0.0.0.0 --dashboard-port 9000", "http://127.0.0.1:9000"),
        ("ray start --dashboard-host 10.0.0.1", "http://10.0.0.1:8265"),
        ("ray start --include-dashboard=False", ""),
    ],
)
def test_the_dashboard_is_found_or_known_to_be_off(words: str, url: str) -> None:
    assert ray.dashboard_url(words.split()) == url


@pytest.mark.parametrize("address", ["", "host", ":6379", "host:", "host:x", "host:0", "h:65536"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not IP:PORT"):
        ray.split_address(address)


def test_an_address_may_be_ipv6() -> None:
    assert ray.split_address("[::1]:6379") == ("::1", 6379)


def test_ray_is_the_script_on_path_else_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "ray"
    script.write_text("#!/opt/venv/bin/python3\n")
    script.chmod(0o755)
    assert ray.command(("ray", "start"), str(tmp_path)) == (str(script), "start")
    assert ray.interpreter(str(tmp_path)) == "/opt/venv/bin/python3"
    empty = tmp_path / "empty"
    (empty / "ray").mkdir(parents=True)
    (empty / "ray" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(empty), *sys.path])
    assert ray.command(("ray", "start"), "/nonexistent") == (
        *(sys.executable, "-m", "ray.scripts.scripts"),
        "start",
    )
    assert ray.interpreter("/nonexistent") == ""


def test_another_program_is_left_as_it_is() -> None:
    assert ray.command(("sleep", "1"), "/nonexistent") == ("sleep", "1")
