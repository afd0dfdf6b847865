"""Engines from the spec folder: run, probed, restarted, replaced and stopped with their files."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.node import engine
from tests.node.wardens import Node, alive
from tests.rig.programs import until

MAIN = ("--role", "instance")
IDLE = ("sh", "-c", "exec sleep 1000")


@pytest.fixture
def port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


def serve(node: Node, name: str, port: int, /, **fields: object) -> Path:
    base = f"http://127.0.0.1:{port}"
    node.folder.mkdir(exist_ok=True)
    return node.spec(
        name,
        argv=[sys.executable, engine.__file__, str(node.folder), str(port)],
        health_url=f"{base}/health",
        canary_url=f"{base}/v1/completions",
        canary_body={"prompt": "1", "max_tokens": 1},
        metrics_url=f"{base}/metrics",
        **fields,
    )


def test_an_engine_lives_as_long_as_its_file(node: Node, port: int) -> None:
    file = serve(node, "llama", port)
    node.start(*MAIN, child=IDLE)
    pid = node.child("running", "llama")["pid"]
    file.unlink()
    node.reaches(lambda status: "llama" not in status["engines"])
    assert not alive(pid)
    assert node.ask("status")["engines"]["node"]["state"] == "running"


def test_whoever_writes_a_file_and_asks_hears_of_it_at_once(node: Node) -> None:
    node.start(*MAIN, child=IDLE)
    node.child("running")
    for name in ("one", "two", "three"):
        node.spec(name, argv=list(IDLE))
        assert name in node.ask("status")["engines"]


def test_a_changed_file_replaces_its_engine(node: Node, port: int) -> None:
    serve(node, "llama", port)
    node.start(*MAIN, child=IDLE)
    first = node.child("running", "llama")["pid"]
    serve(node, "llama", port, env={"CHANGED": "yes"})
    node.reaches(lambda s: s["engines"].get("llama", {}).get("pid") not in (None, first))
    assert node.child("running", "llama")["restarts"] == 0
    assert not alive(first)


def test_an_unhealthy_engine_is_killed_and_comes_back(node: Node, port: int) -> None:
    serve(node, "llama", port)
    node.start(*MAIN, child=IDLE)
    node.child("running", "llama")
    (node.folder / "unhealthy").touch()
    node.reaches(lambda s: s["engines"]["llama"]["failures"] == 1)
    (node.folder / "unhealthy").unlink()
    again = node.child("running", "llama")
    assert again["last_failure"]["reason"] == "/health answered 503 3 times in a row"


def test_an_engine_that_dies_at_its_first_request_was_never_ready(node: Node, port: int) -> None:
    serve(node, "llama", port)
    node.folder.mkdir(exist_ok=True)
    (node.folder / "fragile").touch()
    node.start(*MAIN, child=IDLE)
    seen: set[str] = set()

    def failed_twice(status: dict[str, Any]) -> bool:
        engine = status["engines"].get("llama", {"state": "", "failures": 0})
        seen.add(engine["state"])
        return bool(engine["failures"] == 2)

    node.reaches(failed_twice)
    assert "running" not in seen
    failure = node.ask("status")["engines"]["llama"]["last_failure"]
    assert failure["reason"] == "exited with code 1"


def test_an_engine_that_is_healthy_and_cannot_generate_is_not_ready(node: Node, port: int) -> None:
    serve(node, "llama", port, start_limit_s=2)
    node.folder.mkdir(exist_ok=True)
    (node.folder / "dumb").touch()
    node.start(*MAIN, child=IDLE)
    node.reaches(lambda s: s["engines"].get("llama", {}).get("failures") == 1)
    assert node.ask("status")["engines"]["llama"]["last_failure"]["reason"] == (
        "not ready within 2 s"
    )
    (node.folder / "dumb").unlink()
    node.child("running", "llama")


def test_a_bad_file_is_named_and_leaves_the_engine_it_last_described(node: Node, port: int) -> None:
    file = serve(node, "llama", port)
    node.start(*MAIN, child=IDLE)
    pid = node.child("running", "llama")["pid"]
    file.write_text('{"name": "llama", "argvv": []}')
    status = node.reaches(lambda status: bool(status["bad_specs"]))
    assert status["bad_specs"] == {"llama.json": "unknown keys: argvv"}
    assert node.child("running", "llama")["pid"] == pid


def test_an_engine_for_another_node_is_not_ours(node: Node, port: int) -> None:
    serve(node, "theirs", port, node="other-host")
    node.spec("ours", argv=["sleep", "1000"], node="this-host")
    node.start(*MAIN, "--node", "this-host", child=IDLE)
    node.child("running", "ours")
    assert sorted(node.ask("status")["engines"]) == ["node", "ours"]


def test_an_engine_that_needs_ray_starts_after_it_and_ends_with_it(node: Node) -> None:
    with socket.socket() as gcs:
        gcs.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{gcs.getsockname()[1]}"
        node.spec("llama", argv=["sleep", "1000"], needs=["ray"])
        node.start("--role", "head", "--ray-address", address, "--back-off", "2", child=IDLE)
        waiting = node.child("waiting", "llama")
        assert waiting["reason"] in ("not started yet", "waiting for Ray, which is starting")
        gcs.listen(64)
        engine_pid = node.child("running", "llama")["pid"]
        ray_pid = node.child("running", "ray")["pid"]
        os.kill(ray_pid, signal.SIGKILL)
        until("the engine's end", lambda: not alive(engine_pid))
        back = node.child("running", "llama")
        assert (back["failures"], back["restarts"]) == (0, 1)
        assert node.child("running", "ray")["failures"] == 1


def test_an_engine_waits_for_the_nodes_it_needs(node: Node) -> None:
    with socket.socket() as gcs:
        gcs.bind(("127.0.0.1", 0))
        gcs.listen(64)
        address = f"127.0.0.1:{gcs.getsockname()[1]}"
        node.spec("llama", argv=["sleep", "1000"], needs=["ray"], nodes=["gpu-01", "gpu-02"])
        node.start("--role", "head", "--ray-address", address, child=IDLE)
        node.child("running", "ray")
        node.reaches(
            lambda s: s["engines"]["llama"]["reason"] == "waiting for Ray nodes: gpu-01, gpu-02"
        )


def test_engines_are_stopped_before_what_they_need(node: Node) -> None:
    with socket.socket() as gcs:
        gcs.bind(("127.0.0.1", 0))
        gcs.listen(64)
        address = f"127.0.0.1:{gcs.getsockname()[1]}"
        order = node.folder / "order"
        drain = f"trap 'echo engine >> {order}; exit 0' TERM; while :; do sleep 0.1; done"
        node.spec("llama", argv=["sh", "-c", drain], needs=["ray"])
        main = f"trap 'echo ray >> {order}; exit 0' TERM; while :; do sleep 0.1; done"
        node.start("--role", "head", "--ray-address", address, child=("sh", "-c", main))
        node.child("running", "llama")
        assert node.end() == 0
        assert order.read_text() == "engine\nray\n"
