"""The demo's fleet: this machine, the process runtime, ports that nobody uses."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vllmdeploy.core.command import Command, check
from vllmdeploy.effects.execute import OnEvent
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.workflows import cluster
from vllmdeploy.workflows.session import Session

CLUSTER = "demo"
_PORT_KEYS = (
    "RAY_PORT",
    "RAY_DASHBOARD_PORT",
    "RAY_CLIENT_PORT",
    "RAY_NODE_MANAGER_PORT",
    "RAY_OBJECT_MANAGER_PORT",
    "RAY_RUNTIME_ENV_AGENT_PORT",
    "RAY_DASHBOARD_AGENT_GRPC_PORT",
    "RAY_DASHBOARD_AGENT_PORT",
    "RAY_METRICS_PORT",
)
_WORKERS = 100
_FIRST_PORT = 26000


def demo_files(folder: Path) -> Path:
    """config.env and worker_nodes.txt of the demo, as a person would write them."""
    ports = free_ports(len(_PORT_KEYS))
    first = max(ports) + 1
    keys = {
        "CLUSTER_NAME": CLUSTER,
        "RUNTIME": "process",
        "ACCELERATOR": "cpu",
        "MODEL_PATH": str(folder / "models"),
        **{key: str(port) for key, port in zip(_PORT_KEYS, ports, strict=True)},
        "RAY_WORKER_PORTS": f"{first}-{first + _WORKERS}",
    }
    config = folder / "config.env"
    config.write_text("".join(f"{key}={value}\n" for key, value in keys.items()), "utf-8")
    nodes = folder / "worker_nodes.txt"
    nodes.write_text("localhost head=yes ray_gpus=1\n", "utf-8")
    return config


def free_ports(count: int) -> Sequence[int]:
    """Ports of one block that nobody listens on now, held together until all are found."""
    found: list[int] = []
    with ExitStack() as held:
        port = _FIRST_PORT
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("", port))
            except OSError:
                pass
            else:
                found.append(port)
            port += 1
    return found


def bring_up(session: Session, on_event: OnEvent) -> VllmdeployError | None:
    """What is left of a demo that was killed goes first. Returns the first failure, if any."""
    with cluster.locked(session, "demo") as stop:
        old = cluster.decide_down(session, session.look_at_all(), forget=True)
        cluster.apply(session, old, "demo", on_event, stop)
        plan = cluster.decide_up(session, session.look_at_all())
        failed = cluster.apply(session, plan, "demo", on_event, stop).failed
    return failed[0].error if failed else None


def take_down(session: Session, on_event: OnEvent) -> None:
    with cluster.locked(session, "demo") as stop:
        plan = cluster.decide_down(session, session.look_at_all(), forget=True)
        cluster.apply(session, plan, "demo", on_event, stop)
    head = session.lead.name
    way = cluster.head_access(session)
    command = way.of(Command(("rm", "-rf", "--", way.layout.root), root=True))
    check(head, command, session.shells[head].run(command), doing="removing the demo's folder")
