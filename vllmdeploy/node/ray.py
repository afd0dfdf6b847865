"""What the warden knows of Ray: its command line, its ports, and its list of nodes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

STARTED = "Ray runtime started"  # `ray start` says so once the node is registered
STOP_S = 15.0
_MISSING = (
    "this image has no Ray: neither `ray` on PATH nor the Python module; "
    "use an image with Ray, or EXECUTOR=mp"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    """One node as Ray itself reports it. A resource that is not in `used` is not known yet."""

    name: str
    ip: str
    alive: bool
    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    used: Mapping[str, float] = field(default_factory=dict[str, float])
    id: str = ""


class RayMissing(Exception):
    """No Ray can be started here; trying again cannot help."""


def command(argv: Sequence[str], path: str) -> tuple[str, ...]:
    """`ray ...` as it can be run here: the script on PATH, else the module."""
    if not argv or argv[0] != "ray":
        return tuple(argv)
    found = shutil.which("ray", path=path)
    if found:
        return (found, *argv[1:])
    if importlib.util.find_spec("ray") is not None:
        return (sys.executable, "-m", "ray.scripts.scripts", *argv[1:])
    raise RayMissing(_MISSING)


def interpreter(path: str) -> str:
    """The Python that the `ray` script on PATH runs with; empty where it does not say."""
    found = shutil.which("ray", path=path)
    if not found:
        return ""
    try:
        with Path(found).open("rb") as file:
            first = file.readline(4096).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    words = first[2:].split() if first.startswith("#!") else []
    return words[0] if words and Path(words[0]).name.startswith("python") else ""


def option(argv: Sequence[str], name: str) -> str:
    """The value of `--name=value` or `--name value`; the last one counts."""
    value = ""
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def gcs_address(argv: Sequence[str]) -> str:
    """IP:PORT of the cluster's GCS as `ray start` is told it; empty when it is not."""
    if "--head" in argv:
        ip = option(argv, "--node-ip-address")
        return f"{ip}:{option(argv, '--port') or '6379'}" if ip else ""
    return option(argv, "--address")


def dashboard_url(argv: Sequence[str]) -> str:
    """The dashboard's address on the head itself; empty when it is switched off."""
    if option(argv, "--include-dashboard").lower() in ("false", "0", "no"):
        return ""
    host = option(argv, "--dashboard-host") or "127.0.0.1"
    host = "127.0.0.1" if host in ("0.0.0.0", "localhost") else host  # noqa: S104  compared only
    return f"http://{host}:{option(argv, '--dashboard-port') or '8265'}"


def split_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"{address!r} is not IP:PORT")
    return host.strip("[]"), int(port)


def parse_nodes(state: str, usage: str) -> tuple[RayNode, ...]:
    """From the dashboard's /api/v0/nodes (names, totals) and /api/cluster_status (what is used)."""
    rows = _rows(_dig(json.loads(state), "data", "result", "result"))
    report = _dig(json.loads(usage), "data", "clusterStatus", "loadMetricsReport")
    used = _object(_object(report).get("usageByNode"))
    return one_per_name(
        _state_node(row, _object(used.get(str(row.get("node_id"))))) for row in rows
    )


def parse_gcs_nodes(text: str) -> tuple[RayNode, ...]:
    """One line of `node.gcsview`."""
    return one_per_name(
        RayNode(
            name=str(row.get("name", "")),
            ip=str(row.get("ip", "")),
            alive=row.get("alive") is True,
            resources=_numbers(row.get("resources")),
            used=_numbers(row.get("used")),
        )
        for row in _rows(json.loads(text))
    )


def one_per_name(nodes: Iterable[RayNode]) -> tuple[RayNode, ...]:
    """A node that came back is a new one for Ray, its dead self stays listed: the living wins."""
    chosen: dict[str, RayNode] = {}
    for node in nodes:
        if node.alive or node.name not in chosen:
            chosen[node.name] = node
    return tuple(chosen[name] for name in sorted(chosen))


def _state_node(row: Mapping[str, object], usage: Mapping[str, object]) -> RayNode:
    resources = _numbers(row.get("resources_total"))
    # The dashboard rewrites the resource names of this answer only, as it does with all its keys.
    pairs = {name: _list(usage.get(_camel(name))) for name in resources}
    return RayNode(
        name=str(row.get("node_name") or ""),
        ip=str(row.get("node_ip") or ""),
        alive=row.get("state") == "ALIVE",
        resources=resources,
        used=_numbers({name: pair[0] for name, pair in pairs.items() if pair}),
        id=str(row.get("node_id") or ""),
    )


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _dig(value: object, *keys: str) -> object:
    for key in keys:
        value = _object(value).get(key)
    return value


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _rows(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise ValueError("no list of nodes in the answer")
    return [_object(row) for row in cast("list[object]", value)]


def _numbers(value: object) -> dict[str, float]:
    return {
        name: float(number)
        for name, number in _object(value).items()
        if isinstance(number, (int, float))
    }
