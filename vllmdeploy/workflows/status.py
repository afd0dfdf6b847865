"""What a fleet looks like now, as one value for tables and for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vllmdeploy.core.host import Host
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.instances_known import Known
from vllmdeploy.plan.observed import FoundHost, FoundNode, lone_worker
from vllmdeploy.plan.service_gateways import front, gateway_of
from vllmdeploy.tools.ray import RayCluster, RayNode
from vllmdeploy.workflows.gateway_status import (
    GatewayStatus,
    gateway_state,
    gateway_statuses,
)
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One line of `status`."""

    host: str
    group: str
    role: str
    state: str
    why: str = ""
    ip: str = ""
    cards: int | None = None
    vendor: str = ""
    image: str = ""
    since: str = ""
    restarts: int = 0


_WELL = ("ready", "spare", "replaced")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    cluster: str
    hosts: tuple[HostStatus, ...]
    warnings: tuple[str, ...] = ()
    services: tuple[ServiceStatus, ...] = ()
    instances: tuple[Known, ...] = ()
    """Engines outside Ray."""
    gateways: tuple[GatewayStatus, ...] = ()

    @property
    def healthy(self) -> bool:
        hosts = all(host.state in _WELL for host in self.hosts)
        services = all(service.state == "ready" for service in self.services)
        fronts = all(gateway.state == "ready" for gateway in self.gateways)
        return hosts and services and fronts and all(one.well for one in self.instances)

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One served model. `ready` of its `replicas` answer; `engines`: the state of each. `running`
    and `waiting` are requests; `cache` is the share of the KV cache in use; what passes through the
    gateway is of the last second. None where nobody says. `placement`: cards by host, of all
    engines together; empty where they are not known."""

    service: str
    model: str
    group: str
    state: str
    why: str = ""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    since: str = ""
    restarts: int = 0
    running: int | None = None
    waiting: int | None = None
    cache: float | None = None
    replicas: int = 1
    ready: int = 0
    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    engines: Mapping[str, str] = field(default_factory=dict[str, str])
    placement: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class _Group:
    """A group's own word: what Ray on its head says."""

    cluster: RayCluster | None = None
    names: set[str] = field(default_factory=set[str])
    replaced: dict[str, str] = field(default_factory=dict[str, str])
    """The spare that has its place, by host."""


def fleet_status(
    session: Session,
    found: Mapping[str, FoundHost | VllmdeployError],
    services: tuple[ServiceStatus, ...] = (),
    instances: tuple[Known, ...] = (),
) -> FleetStatus:
    groups: dict[str, _Group] = {}
    for host in session.fleet.hosts:
        group = groups.setdefault(host.group, _Group())
        group.names.add(host.name)
        there = found[host.name]
        if isinstance(there, FoundHost) and there.ray is not None:
            group.cluster = there.ray
        if isinstance(there, FoundHost) and host.spare:
            nodes = there.ours(session.wanted.cluster)
            group.replaced |= {one.stands_in_for: host.name for one in nodes if one.stands_in_for}
    hosts = tuple(
        _in_its_place(
            _host_status(session, host.name, found[host.name], groups[host.group].cluster),
            groups[host.group].replaced.get(host.name, ""),
            spare=host.spare,
        )
        for host in session.fleet.hosts
    )
    fronts = (_front_status(session, host, found[host.name]) for host in session.fleet.fronts)
    return FleetStatus(
        cluster=session.wanted.cluster,
        hosts=(*hosts, *fronts),
        warnings=(*_open_doors(session), *_not_in_the_list(groups)),
        services=services,
        instances=instances,
        gateways=gateway_statuses(session, found, serving=bool(services or instances)),
    )


def _in_its_place(status: HostStatus, by: str, *, spare: bool) -> HostStatus:
    """A spare without a node waits; a host whose place a spare has is not missed."""
    if spare and status.state == "absent":
        return replace(status, state="spare", why="")
    if by and status.state != "ready":
        why = f"{by} has its place" + (f"; {status.why}" if status.state == "unreachable" else "")
        return replace(status, state="replaced", why=why)
    return status


def _host_status(
    session: Session, name: str, found: FoundHost | VllmdeployError, cluster: RayCluster | None
) -> HostStatus:
    host = session.fleet.named(name)
    role = "head" if host.head else "worker"
    if isinstance(found, VllmdeployError):
        why = found.message.removeprefix(f"{name}: ").splitlines()[0]
        return HostStatus(host=name, group=host.group, role=role, state="unreachable", why=why)
    alone = lone_worker(session.fleet, found, session.wanted.cluster)
    if alone is not None:
        return _alone(host, found, alone)
    node = next(
        (one for one in found.ours(session.wanted.cluster) if one.role == f"ray-{role}"), None
    )
    seen = cluster.alive().get(name) if cluster else None
    state, why = _state(found, node, seen, cluster)
    return HostStatus(
        host=name,
        group=host.group,
        role=role,
        state=state,
        why=why,
        ip=seen.ip if seen else "",
        cards=_cards(seen) if cluster and cluster.nodes else _own_cards(found, node),
        vendor=found.cards.vendor,
        image=found.image_name if node else "",
        since=node.started_at if node else "",
        restarts=node.restarts if node else 0,
    )


def _alone(host: Host, found: FoundHost, node: FoundNode) -> HostStatus:
    """A worker by its own word: who could say what Ray thinks of it is another machine."""
    warden = found.wardens.get(node.name)
    state, why = _state(found, node, None, None)
    if state == "not joined" and warden is not None:
        state, why = "ready", ""
    return HostStatus(
        host=host.name,
        group=host.group,
        role="worker",
        state=state,
        why=why,
        cards=len(node.cards) or found.host.ray_gpus or 0,
        vendor=found.cards.vendor,
        image=found.image_name,
        since=node.started_at,
        restarts=node.restarts,
    )


def _front_status(session: Session, host: Host, found: FoundHost | VllmdeployError) -> HostStatus:
    """A host that runs the gateway and nothing else."""
    plain = HostStatus(host=host.name, group=host.group, role="gateway", state="unreachable")
    if isinstance(found, VllmdeployError):
        why = found.message.removeprefix(f"{host.name}: ").splitlines()[0]
        return replace(plain, why=why)
    node = gateway_of(session.wanted, found)
    state, why = gateway_state(found, node)
    return replace(
        plain,
        state=state,
        why=why,
        ip=front(found).place.ip,
        image=found.image_name if node else "",
        since=node.started_at if node else "",
        restarts=node.restarts if node else 0,
    )


def _state(
    found: FoundHost, node: FoundNode | None, seen: RayNode | None, cluster: RayCluster | None
) -> tuple[str, str]:
    """The state of one host's node and why it is not ready."""
    if found.engine.problem:
        return "no docker", found.engine.problem
    if node is None:
        return "absent", "no node of this cluster; `vllmdeploy up` makes it"
    if not node.running:
        return "stopped", node.stopped
    warden = found.wardens.get(node.name)
    if seen or (warden is not None and warden.without_ray):
        return "ready", ""
    reason = (cluster.problem if cluster else "") or "Ray does not report it"
    if warden is None or warden.state == "running":
        return "not joined", reason
    return warden.state, warden.reason or reason


def _cards(seen: RayNode | None) -> int | None:
    if seen is None:
        return None
    return sum(seen.cards(resource) for resource in ("GPU", "NPU", "HPU"))


def _own_cards(found: FoundHost, node: FoundNode | None) -> int | None:
    """Without Ray, the cards that its node was made with."""
    warden = found.wardens.get(node.name) if node else None
    if node is None or warden is None or not warden.without_ray:
        return None
    return len(node.cards) or found.host.ray_gpus or 0


def _open_doors(session: Session) -> tuple[str, ...]:
    """What is open to everybody who reaches it is said each time."""
    settings = session.settings
    said: list[str] = []
    if settings.ray_auth == "none":
        said.append("RAY_AUTH=none: whoever reaches Ray's ports runs code on the hosts")
    if settings.api_auth == "none":
        allowed = ",".join(settings.api_allow) or "everybody"
        said.append(f"API_AUTH=none: the API answers {allowed} without a key")
    return tuple(said)


def _not_in_the_list(groups: Mapping[str, _Group]) -> tuple[str, ...]:
    return tuple(
        f"group {name}: Ray also reports {node} ({one.ip}), which is not in the list of hosts"
        for name, group in groups.items()
        if group.cluster
        for node, one in group.cluster.alive().items()
        if node not in group.names
    )
