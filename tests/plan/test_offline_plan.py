"""Plans without contacting anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllmdeploy.accelerators.registry import VENDORS
from vllmdeploy.config.settings import load
from vllmdeploy.core.plan import Plan
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.workflows.offline import decide_offline


def offline(folder: Path, nodes: str, cards: int = 8, **keys: str) -> Plan:
    path = folder / "worker_nodes.txt"
    path.write_text(nodes, "utf-8")
    loaded = load(nodes_path=path, environ={}, overrides=keys, accelerators=tuple(VENDORS))
    return decide_offline(loaded, cards=cards)


def argv(plan: Plan, key: str) -> tuple[str, ...]:
    return next(step.command.argv for step in plan if step.key == key)


def test_names_stand_where_addresses_would_and_interfaces_are_left_out(tmp_path: Path) -> None:
    plan = offline(tmp_path, "gpu-02 ip=10.0.0.2\n", 4, HEAD_HOST="gpu-01", IMAGE="x:1")
    worker = argv(plan, "gpu-02: create vllm-ray-worker")
    assert "--address=gpu-01:6379" in worker
    assert "--node-ip-address=10.0.0.2" in worker
    assert "--num-gpus=4" in worker
    assert not any("IFNAME" in word for word in worker)
    assert plan.notes[0] == (
        "offline: no host was asked; 4 cards per host, names where addresses would be,"
        " interfaces (NCCL_SOCKET_IFNAME and the like) left out"
    )
    assert any(step.key == "gpu-02: pull image x:1" for step in plan)


def test_a_group_and_a_host_may_have_another_vendor(tmp_path: Path) -> None:
    nodes = "dcu-01 group=hygon head=yes accelerator=hygon\ncpu-01 accelerator=cpu ray_gpus=1\n"
    plan = offline(tmp_path, nodes, HEAD_HOST="gpu-01", IMAGE="x:1", IMAGE_HYGON="y:1")
    assert "--gpus" in argv(plan, "gpu-01: create vllm-ray-head")
    assert "/dev/mkfd" in argv(plan, "dcu-01: create vllm-ray-head")
    assert "--num-gpus=1" in argv(plan, "cpu-01: create vllm-ray-worker")
    assert "y:1" in argv(plan, "dcu-01: create vllm-ray-head")


def test_more_cards_than_asked_for_is_refused_here_too(tmp_path: Path) -> None:
    with pytest.raises(PreflightRefused, match="ray_gpus=9, but 8 cards are free"):
        offline(tmp_path, "gpu-02 ray_gpus=9\n", HEAD_HOST="gpu-01", IMAGE="x:1")
