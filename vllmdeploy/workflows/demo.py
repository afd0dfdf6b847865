"""The demo's fleet: this machine, the process runtime, ports that nobody uses."""

from __future__ import annotations

import shlex
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.core.command import Command, check
from vllmdeploy.effects.execute import OnEvent
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.workflows import cluster, service
from vllmdeploy.workflows.service import ServicePlan
from vllmdeploy.workflows.session import Session

CLUSTER = "demo"
MODEL = "SmolLM2-135M-Instruct"
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
    "RAY_AUTOSCALER_METRICS_PORT",
    "RAY_DASHBOARD_METRICS_PORT",
)
# A machine without a compiler runs it too, and the cache of a small model needs no half of it.
_CPU = "VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1"
_WORKERS = 100
_FIRST_PORT = 26000


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An interpreter with vLLM and a folder with the demo's model, as scripts/engine.sh makes
    them."""

    python: Path
    models: Path

    @property
    def there(self) -> bool:
        return self.python.exists() and (self.models / MODEL / "config.json").exists()


def engine_of(checkout: Path) -> Engine:
    return Engine(python=checkout / ".venv-engine/bin/python", models=checkout / ".cache/models")


def demo_files(folder: Path, engine: Engine) -> Path:
    """config.env and worker_nodes.txt of the demo, as a person would write them. Without an
    engine, only Ray is brought up."""
    *ports, api, engine_port = free_ports(len(_PORT_KEYS) + 2)
    first = max(*ports, api, engine_port) + 1
    keys = {
        "CLUSTER_NAME": CLUSTER,
        "RUNTIME": "process",
        "ACCELERATOR": "cpu",
        "MODEL_PATH": str(engine.models),
        "API_HOST": "127.0.0.1",
        "API_PORT": str(api),
        "ENGINE_PORTS": f"{engine_port}-{engine_port}",
        **({"VLLM_PYTHON": str(engine.python), "EXTRA_ENV": _CPU} if engine.there else {}),
        "EXTRA_VLLM_ARGS": "--enforce-eager",
        "MAX_MODEL_LEN": "2048",
        **{key: str(port) for key, port in zip(_PORT_KEYS, ports, strict=True)},
        "RAY_WORKER_PORTS": f"{first}-{first + _WORKERS}",
    }
    config = folder / "config.env"
    lines = (f"{key}={shlex.quote(value)}\n" for key, value in keys.items())
    config.write_text("".join(lines), "utf-8")
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


def serve(session: Session, on_event: OnEvent) -> ServicePlan:
    """The demo's model on its Ray, behind its gateway, by the same plan as on a fleet."""
    with cluster.locked(session, "demo") as stop:
        asked = service.asked_of(session.settings, MODEL, tensor_parallel=1)
        decided = service.decide_start(session, asked, session.lead.group)
        failed = cluster.apply(session, decided.plan, "demo", on_event, stop).failed
    if failed and failed[0].error:
        raise failed[0].error
    return decided


def keep_logs(session: Session) -> Path | None:
    """What a demo that failed leaves behind, since everything else of it goes; None where it came
    to no logs."""
    kept = Path(tempfile.mkdtemp(prefix="vllmdeploy-demo-logs-"))
    with suppress(VllmdeployError):
        way = cluster.head_access(session)
        copy = Command(("cp", "-R", "--", f"{way.layout.root}/logs/.", str(kept)), root=True)
        session.shells[session.lead.name].run(way.of(copy))
    if any(kept.iterdir()):
        return kept
    kept.rmdir()
    return None


def take_down(session: Session, on_event: OnEvent) -> None:
    with cluster.locked(session, "demo") as stop:
        plan = cluster.decide_down(session, session.look_at_all(), forget=True)
        cluster.apply(session, plan, "demo", on_event, stop)
    head = session.lead.name
    way = cluster.head_access(session)
    command = way.of(Command(("rm", "-rf", "--", way.layout.root), root=True))
    check(head, command, session.shells[head].run(command), doing="removing the demo's folder")
