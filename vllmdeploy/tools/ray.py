"""Ray: how its nodes are started, which ports they use, and what a cluster says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import fields, json_line, number, whole

OLDEST = (2, 40)
OLDEST_WITH_TOKEN = (2, 52)
# vLLM itself has always excluded it: its compiled graphs, which carry pipeline parallelism, broke.
_KNOWN_BAD: dict[tuple[int, ...], str] = {(2, 44): "whose compiled graphs vLLM cannot use"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPorts:
    """Every port that a Ray node listens on, pinned, so that a firewall rule can be written."""

    gcs: int
    dashboard: int
    client: int
    node_manager: int
    object_manager: int
    runtime_env_agent: int
    dashboard_agent_grpc: int
    dashboard_agent: int
    metrics: int
    autoscaler_metrics: int
    dashboard_metrics: int
    workers: tuple[int, int]

    @property
    def of_head(self) -> tuple[int, ...]:
        own = (self.gcs, self.dashboard, self.client)
        return (*own, self.autoscaler_metrics, self.dashboard_metrics, *self.of_worker)

    @property
    def of_head_by_environment(self) -> dict[str, str]:
        """Those for which `ray start` has no flag."""
        return {
            "AUTOSCALER_METRIC_PORT": str(self.autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(self.dashboard_metrics),
        }

    @property
    def of_worker(self) -> tuple[int, ...]:
        return (
            self.node_manager,
            self.object_manager,
            self.runtime_env_agent,
            self.dashboard_agent_grpc,
            self.dashboard_agent,
            self.metrics,
        )


def start_head(*, ip: str, name: str, ports: RayPorts, cards: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *("ray", "start", "--block", "--head"),
        *_node(ip, name),
        f"--port={ports.gcs}",
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        f"--dashboard-port={ports.dashboard}",
        f"--ray-client-server-port={ports.client}",
        *_ports(ports),
        *cards,
        "--disable-usage-stats",
    )


def start_worker(
    *, head_ip: str, ip: str, name: str, ports: RayPorts, cards: tuple[str, ...]
) -> tuple[str, ...]:
    return (
        *("ray", "start", "--block", f"--address={head_ip}:{ports.gcs}"),
        *_node(ip, name),
        *_ports(ports),
        *cards,
        "--disable-usage-stats",
    )


def _node(ip: str, name: str) -> tuple[str, ...]:
    return (f"--node-ip-address={ip}", f"--node-name={name}")


def _ports(ports: RayPorts) -> tuple[str, ...]:
    first, last = ports.workers
    return (
        f"--node-manager-port={ports.node_manager}",
        f"--object-manager-port={ports.object_manager}",
        f"--runtime-env-agent-port={ports.runtime_env_agent}",
        f"--dashboard-agent-grpc-port={ports.dashboard_agent_grpc}",
        f"--dashboard-agent-listen-port={ports.dashboard_agent}",
        f"--metrics-export-port={ports.metrics}",
        f"--min-worker-port={first}",
        f"--max-worker-port={last}",
    )


def known_bad(text: str) -> str:
    """Why no vLLM should run on this Ray; nothing for all others."""
    return _KNOWN_BAD.get(version(text)[:2], "")


def version(text: str) -> tuple[int, ...]:
    """`2.60.0` -> (2, 60, 0); what is not a number ends it."""
    numbers: list[int] = []
    for part in text.split("."):
        found = whole(part)
        if found is None:
            break
        numbers.append(found)
    return tuple(numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    """A node as Ray itself reports it."""

    name: str
    ip: str
    alive: bool
    resources: Mapping[str, float]
    used: Mapping[str, float]

    def cards(self, resource: str) -> int:
        return int(self.resources.get(resource, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """All nodes, or the reason why Ray did not name them."""

    nodes: tuple[RayNode, ...] = ()
    problem: str = ""

    def alive(self) -> dict[str, RayNode]:
        return {node.name: node for node in self.nodes if node.alive}


def _numbers(shown: object) -> dict[str, float]:
    numbers = {key: number(value) for key, value in fields(shown).items()}
    return {key: value for key, value in numbers.items() if value is not None}


def parse_cluster(result: Result) -> RayCluster:
    """Reads the answer of the warden's `ctl nodes`."""
    shown = json_line(result.stdout)
    nodes = None if shown is None else shown.get("nodes")
    if shown is None or not isinstance(nodes, list):
        lines = [line for line in result.output.splitlines() if line.strip()]
        return RayCluster(problem=lines[-1] if lines else "no answer")
    return RayCluster(
        nodes=tuple(_node_seen(fields(node)) for node in cast("list[object]", nodes)),
        problem=str(shown.get("problem") or ""),
    )


def _node_seen(shown: Mapping[str, Any]) -> RayNode:
    return RayNode(
        name=str(shown.get("name", "")),
        ip=str(shown.get("ip", "")),
        alive=shown.get("alive") is True,
        resources=_numbers(shown.get("resources")),
        used=_numbers(shown.get("used")),
    )


def cluster(command: Command) -> Fact[RayCluster]:
    return Fact(name="ray nodes", command=command, parse=parse_cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedNode:
    """What Ray has to report of one host before `up` is done."""

    name: str
    ip: str
    cards: int
    resource: str


def still_missing(expected: Iterable[ExpectedNode], seen: RayCluster) -> tuple[str, ...]:
    """One line for every host or card that Ray does not report (yet), by name."""
    alive = seen.alive()
    lines: list[str] = []
    for want in expected:
        node = alive.get(want.name)
        if node is None:
            lines.append(f"{want.name} ({want.ip}) is not in the cluster")
        elif node.ip != want.ip and not want.ip.startswith("127."):
            # Ray itself replaces a loopback address by one that others could reach.
            lines.append(f"{want.name} joined as {node.ip} instead of {want.ip}")
        elif node.cards(want.resource) < want.cards:
            lines.append(
                f"{want.name} brings {node.cards(want.resource)} {want.resource}"
                f" instead of {want.cards}"
            )
    return tuple(lines)
