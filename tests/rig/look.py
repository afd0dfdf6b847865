"""What really is on the hosts, asked of Docker, Ray and the disk, not of our own tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.rig.host import Host
from tests.rig.rig import Rig
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT, Layout

DASHBOARD = "http://127.0.0.1:8265/nodes?view=summary"
# Logs of the host's own services, which a deployment cannot help growing.
OF_THE_SYSTEM = ("/var/log/dockerd.log", "/var/log/lastlog", "/var/log/wtmp", "/var/lib/sudo/")
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1])
token = sys.stdin.read().strip()
if token:
    request.add_header("Authorization", "Bearer " + token)
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    name: str
    id: str
    state: str
    pid: int
    restarts: int
    labels: Mapping[str, str]

    @property
    def running(self) -> bool:
        return self.state == "running"


def containers(host: Host) -> dict[str, Container]:
    """All of them, stopped ones too, by name."""
    listed = host.sh("docker ps --all --quiet --no-trunc | xargs -r docker inspect").stdout
    found: list[dict[str, Any]] = json.loads(listed or "[]")
    return {
        one["Name"].lstrip("/"): Container(
            name=one["Name"].lstrip("/"),
            id=one["Id"],
            state=one["State"]["Status"],
            pid=one["State"]["Pid"],
            restarts=one["RestartCount"],
            labels=one["Config"]["Labels"] or {},
        )
        for one in found
    }


def ids(rig: Rig) -> dict[str, str]:
    """Container ids by `host/name`: the same before and after means that nothing was re-created."""
    return {
        f"{host.name}/{name}": container.id
        for host in rig.hosts
        for name, container in containers(host).items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    id: str
    ip: str
    alive: bool
    cards: int


def ray_nodes(host: Host, *, token_file: str) -> tuple[RayNode, ...]:
    """The nodes that the Ray head on this host knows, as its dashboard tells; none without one."""
    line = 'if [ -f "$2" ]; then cat "$2"; fi | /usr/bin/python3 -c "$1" "$3"'
    answer = host.sh(line, ASK, token_file, DASHBOARD, check=False)
    if not answer.ok:
        return ()
    nodes: list[dict[str, Any]] = json.loads(answer.stdout)["data"]["summary"]
    return tuple(
        RayNode(
            id=node["raylet"]["nodeId"],
            ip=node["raylet"]["nodeManagerAddress"],
            alive=node["raylet"]["state"] == "ALIVE",
            cards=int(node["raylet"].get("resourcesTotal", {}).get("GPU", 0)),
        )
        for node in nodes
    )


def cluster(rig: Rig, *, head: Host | None = None, name: str = "vllm") -> dict[str, int]:
    """Cards by IP of the nodes that are alive in our Ray cluster, as Ray itself has them."""
    return {node.ip: node.cards for node in _ours(head or rig.head, name) if node.alive}


def raylets(head: Host, *, name: str = "vllm") -> dict[str, str]:
    """Ray's own ids by IP of the nodes that are alive: a node that came back has another one."""
    return {node.ip: node.id for node in _ours(head, name) if node.alive}


def _ours(head: Host, name: str) -> tuple[RayNode, ...]:
    return ray_nodes(head, token_file=Layout(f"{SYSTEM_STATE_ROOT}/{name}").ray_token)


def listening(host: Host) -> frozenset[int]:
    """TCP ports that something on the host accepts connections on."""
    lines = host.sh("ss --tcp --listening --numeric --no-header").stdout.splitlines()
    return frozenset(int(line.split()[3].rpartition(":")[2]) for line in lines)


def processes(host: Host) -> tuple[str, ...]:
    """Command lines of what runs, besides the host's own services and the asking."""
    lines = host.sh("exec ps --no-headers -eo args").stdout.splitlines()
    own = ("bash /", "sleep infinity", "sshd:", "/usr/sbin/sshd", "dockerd", "containerd", "ps ")
    return tuple(line for line in lines if not line.startswith(own) and "sshd" not in line[:12])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A host before anything was deployed on it."""

    files: frozenset[str]
    ports: frozenset[int]


def snapshot(rig: Rig) -> dict[str, Snapshot]:
    return {host.name: Snapshot(host.disk.files(), listening(host)) for host in rig.hosts}


def left(host: Host, before: Snapshot, *, besides: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What is on a host that was not there before; `besides` are path prefixes that may stay."""
    allowed = (*OF_THE_SYSTEM, *besides)
    files = (path for path in host.disk.files() - before.files if not path.startswith(allowed))
    volumes = host.sh("docker volume ls --quiet").stdout.split()
    return (
        *(f"container {name}" for name in sorted(containers(host))),
        *(f"volume {name}" for name in volumes),
        *(f"file {path}" for path in sorted(files)),
        *(f"port {port}" for port in sorted(listening(host) - before.ports)),
        *(f"process {line}" for line in processes(host)),
    )


def assert_nothing_left(
    rig: Rig, before: Mapping[str, Snapshot], *, besides: tuple[str, ...] = ()
) -> None:
    found = {host.name: left(host, before[host.name], besides=besides) for host in rig.hosts}
    assert found == dict.fromkeys(found, ())
