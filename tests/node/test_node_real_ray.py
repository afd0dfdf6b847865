"""The warden over real Ray: a head and a worker on this machine, with token authentication."""

from __future__ import annotations

import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.node.wardens import Node, alive
from tests.rig.programs import until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install .[ray]"
)

LIMIT_S = 90.0
# A block of ports for each cluster, below the range the kernel takes its own from, and starting
# elsewhere in each test run, so that two runs on one machine seldom meet.
_BLOCK = 200
_BLOCKS = itertools.count(os.getpid() % 60)


def own_address() -> str:
    """An address other hosts could use: Ray replaces loopback by it anyway."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])


@pytest.fixture
def folder() -> Generator[Path, None, None]:
    # Ray's sockets lie deep below it and a Unix address has 107 bytes: pytest's is too long.
    path = Path(tempfile.mkdtemp(prefix="vd-"))
    yield path
    shutil.rmtree(path)


class Cluster:
    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.secret = token.read_text()
        self.folder = folder
        self.port = 20_000 + next(_BLOCKS) % 60 * _BLOCK
        self.ip = own_address()
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def node(self, name: str) -> Node:
        return Node(self.folder, name, environment=self.environment)

    def ray(self, name: str, first_port: int, *options: str) -> tuple[str, ...]:
        """`ray start` with every port pinned, in a block of its own."""
        ports = (
            *("node-manager-port", "object-manager-port", "runtime-env-agent-port"),
            *("dashboard-agent-grpc-port", "dashboard-agent-listen-port", "metrics-export-port"),
        )
        return (
            *("ray", "start", "--block", f"--node-name={name}", f"--node-ip-address={self.ip}"),
            *(f"--{port}={first_port + number}" for number, port in enumerate(ports)),
            *(f"--min-worker-port={first_port + 20}", f"--max-worker-port={first_port + 60}"),
            *("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"),
            *options,
        )

    def head(self, *options: str) -> tuple[str, ...]:
        return self.ray(
            "gpu-01",
            self.port,
            *("--head", f"--port={self.port + 10}", "--num-gpus=2"),
            *(f"--ray-client-server-port={self.port + 11}", *options),
            f"--temp-dir={self.folder / 'h'}",
        )

    def worker(self) -> tuple[str, ...]:
        address = f"--address={self.ip}:{self.port + 10}"
        return self.ray("gpu-02", self.port + 100, address, "--num-gpus=3")

    @property
    def dashboard(self) -> tuple[str, str]:
        return ("--dashboard-host=127.0.0.1", f"--dashboard-port={self.port + 12}")


@pytest.fixture
def cluster(folder: Path) -> Cluster:
    return Cluster(folder)


def cards(head: Node) -> dict[str, float]:
    """Cards by name of the nodes Ray reports as alive."""
    nodes: list[dict[str, Any]] = head.ask("nodes")["nodes"]
    return {node["name"]: node["resources"].get("GPU", 0) for node in nodes if node["alive"]}


def by_dashboard(head: Node) -> dict[str, Any] | None:
    """What the dashboard says, which comes up well after the GCS that is asked meanwhile."""
    answer = head.ask("nodes")
    return answer if answer["source"] == "dashboard" else None


def used(head: Node) -> list[float | None]:
    """Ray says what is used some seconds after it says who is there: until then it is not known."""
    return [node["used"].get("GPU") for node in head.ask("nodes")["nodes"] if node["alive"]]


def reports(head: Node, wanted: dict[str, float]) -> None:
    until(f"Ray reports {wanted}", lambda: cards(head) == wanted, limit_s=LIMIT_S, every_s=0.2)


# An engine as Ray meets it: a child of what the warden started asks for a card per rank.
ENGINE = """
import subprocess, sys
driver = '''
import ray, time
ray.init(log_to_driver=False)
group = ray.util.placement_group([{"GPU": 1}] * 5)
ray.get(group.ready())
time.sleep(1000)
'''
subprocess.run([sys.executable, "-c", driver])
"""


def engine(head: Node, address: str) -> None:
    argv = [sys.executable, "-c", ENGINE]
    head.spec("m", argv=argv, env={"RAY_ADDRESS": address}, needs=["ray"])


def placement(head: Node) -> dict[str, int]:
    engines = head.ask("status")["engines"]
    found: dict[str, int] = engines["m"]["placement"] if "m" in engines else {}
    return found


def test_a_cluster_forms_heals_and_ends(cluster: Cluster) -> None:
    head, worker = cluster.node("head"), cluster.node("worker")
    try:
        worker.start("--role", "worker", child=cluster.worker())
        assert worker.child("waiting", "ray")["pid"] is None
        head.start(
            "--role",
            "head",
            "--expect-nodes",
            "gpu-01,gpu-02",
            child=cluster.head(*cluster.dashboard),
        )
        head.child("running", "ray", LIMIT_S)
        worker.child("running", "ray", LIMIT_S)
        reports(head, {"gpu-01": 2.0, "gpu-02": 3.0})
        answer = until("the dashboard", lambda: by_dashboard(head), limit_s=LIMIT_S, every_s=0.2)
        assert answer["problem"] == ""
        assert {node["ip"] for node in answer["nodes"]} == {cluster.ip}
        until("what is used", lambda: used(head) == [0.0, 0.0], limit_s=LIMIT_S, every_s=0.2)
        assert head.ask("status")["missing_nodes"] == []
        engine(head, f"{cluster.ip}:{cluster.port + 10}")
        placed = until("its cards", lambda: placement(head) or None, limit_s=LIMIT_S, every_s=0.2)
        assert placed == {"gpu-01": 2, "gpu-02": 3}

        raylet = pid_of(worker, "raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
        worker.reaches(lambda status: status["ray"]["restarts"] >= 1, LIMIT_S)
        worker.child("running", "ray", LIMIT_S)
        os.kill(pid_of(head, "gcs/gcs_server"), signal.SIGKILL)
        head.reaches(lambda status: status["ray"]["restarts"] == 1, LIMIT_S)
        head.child("running", "ray", LIMIT_S)
        reports(head, {"gpu-01": 2.0, "gpu-02": 3.0})

        worker.child("running", "ray", LIMIT_S)
        pids = [*head.left(), *worker.left()]
        assert len(pids) >= 8
        assert (worker.end(), head.end()) == (0, 0)
        assert not any(map(alive, pids))
        assert cluster.secret not in everything_written(head) + everything_written(worker)
    finally:
        head.clear()
        worker.clear()


def test_without_a_dashboard_the_gcs_is_asked(cluster: Cluster) -> None:
    head = cluster.node("head")
    try:
        head.start("--role", "head", child=cluster.head("--include-dashboard=false"))
        head.child("running", "ray", LIMIT_S)
        reports(head, {"gpu-01": 2.0})
        answer = head.ask("nodes")
        assert (answer["source"], answer["nodes"][0]["used"]["GPU"]) == ("gcs", 0.0)
        assert head.end() == 0
        assert head.left() == []
    finally:
        head.clear()


def pid_of(node: Node, program: str) -> int:
    def find() -> int | None:
        for pid in node.left():
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            if command.endswith(program):
                return pid
        return None

    return until(program, find, limit_s=LIMIT_S)


def everything_written(node: Node) -> str:
    files = (*node.logs.iterdir(), node.run / "status.json", node.folder / f"{node.name}.out")
    return "".join(file.read_text() for file in files)
