"""What the stored services do now: their warden's word, the gateway's, and the engine's figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import cast

from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask, ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.preflight import node_name
from vllmdeploy.plan.service_gateways import gateway_of
from vllmdeploy.plan.service_wanted import inside
from vllmdeploy.tools import http_page
from vllmdeploy.tools.vllm_engine import EngineState, parse_engines
from vllmdeploy.tools.vllm_services import Service, stored
from vllmdeploy.workflows.service_traffic import Traffic, one_per_service, traffic
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.status import ServiceStatus

_READY = "ready"
_FIGURES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache": "vllm:kv_cache_usage_perc",
}


def service_statuses(
    session: Session, found: Mapping[str, FoundHost | VllmdeployError]
) -> tuple[ServiceStatus, ...]:
    heads = [
        one
        for host in session.fleet.hosts
        if host.head and isinstance(one := found[host.name], FoundHost)
    ]
    gateways = [
        one
        for host in session.fleet.offering
        if isinstance(one := found[host.name], FoundHost)
        and (node := gateway_of(session.wanted, one))
        and node.running
    ]
    found_on: list[_OnHead] = []
    for on in each(heads, lambda head: _on(session, head, found, gateway=bool(gateways))):
        if isinstance(on, VllmdeployError):
            raise on
        found_on.append(on)
    # Counting takes a second, so only where there is something to count for.
    seen = traffic(session, gateways) if any(on.engines for on in found_on) else Traffic()
    return tuple(
        status for on in found_on for status in (*one_per_service(on.engines, seen), *on.broken)
    )


@dataclass(frozen=True, slots=True)
class _OnHead:
    """What one head's store says: engines by the service they belong to, and unreadable specs."""

    engines: Sequence[tuple[str, ServiceStatus]]
    broken: Sequence[ServiceStatus]


def _on(
    session: Session,
    head: FoundHost,
    found: Mapping[str, FoundHost | VllmdeployError],
    *,
    gateway: bool,
) -> _OnHead:
    nodes = {one.role: one for one in head.ours(session.wanted.cluster) if one.running}
    node = nodes.get("ray-head")
    shell, way = session.shells[head.host.name], head.access
    kept = ask_one(shell, stored(way.layout.services), way)
    engines: Mapping[str, EngineState] = {}
    if node and kept:
        command = session.supervisor.ctl(node.name, way.layout, node.package, "status")
        engines = ask_one(shell, Fact("engines", command.within(10), parse_engines), way)
    services = [one.service for one in kept.values() if one.service]
    engines = {**engines, **_led_elsewhere(session, services, found)}
    broken = [
        ServiceStatus(
            service=name, model="", group=head.host.group, state="unreadable", why=one.problem
        )
        for name, one in kept.items()
        if one.service is None
    ]
    none: Mapping[str, str] = {}
    pages = _pages(session, head, node, services) if node and services else none
    by_engine = [
        (one.belongs_to, _status(one, engines, pages.get(one.name, ""), gateway=gateway))
        for one in services
    ]
    return _OnHead(by_engine, broken)


def _led_elsewhere(
    session: Session,
    services: Iterable[Service],
    found: Mapping[str, FoundHost | VllmdeployError],
) -> Mapping[str, EngineState]:
    """Engines without Ray whose first rank runs on another host than the head."""
    engines: dict[str, EngineState] = {}
    for service in services:
        leader = found.get(service.leader)
        if service.leader == service.head or not isinstance(leader, FoundHost):
            continue
        name = node_name(session.wanted, leader)
        ours = leader.ours(session.wanted.cluster)
        node = next((one for one in ours if one.name == name), None)
        if node is None or not node.running:
            engines[service.name] = EngineState(state="absent", reason=f"{service.leader} is down")
            continue
        command = session.supervisor.ctl(name, leader.access.layout, node.package, "status")
        facts = [Fact("engines", command.within(10), parse_engines)]
        (seen,) = ask(session.shells[service.leader], facts, leader.access)
        engines[service.name] = seen.get(service.name) or seen.get("") or EngineState()
    return engines


def _pages(
    session: Session, head: FoundHost, node: FoundNode, services: list[Service]
) -> Mapping[str, str]:
    argv = http_page.several({one.name: f"{one.url}/metrics" for one in services})
    command = inside(session.wanted, node.name, *argv).within(15)
    (pages,) = ask(session.shells[head.host.name], [Fact("figures", command, _parse)], head.access)
    return cast("Mapping[str, str]", pages)


def _parse(result: Result) -> Mapping[str, str]:
    try:
        return cast("dict[str, str]", json.loads(result.stdout))
    except ValueError:
        return {}


def _status(
    service: Service, engines: Mapping[str, EngineState], page: str, *, gateway: bool
) -> ServiceStatus:
    engine = engines.get(service.name) or engines.get("") or EngineState()
    state, why = engine.state or "absent", engine.reason or engine.problem
    if engine.state == "running":
        state, why = _READY, ""
        if not gateway:
            state, why = "no gateway", "`vllmdeploy up` starts it"
    elif not engines:
        why = "its Ray head does not run; `vllmdeploy up` starts it"
    since = datetime.fromtimestamp(engine.since, timezone.utc).isoformat(timespec="seconds")
    plain = ServiceStatus(
        service=service.name,
        model=service.model,
        group=service.group,
        state=state,
        why=why,
        tensor_parallel=service.tensor_parallel,
        pipeline_parallel=service.pipeline_parallel,
        since=since if engine.since else "",
        restarts=engine.restarts,
        placement=_placement(service, engine),
    )
    running, waiting = _figure(page, "running"), _figure(page, "waiting")
    return replace(
        plain,
        running=None if running is None else int(running),
        waiting=None if waiting is None else int(waiting),
        cache=_figure(page, "cache"),
    )


def _placement(service: Service, engine: EngineState) -> Mapping[str, int]:
    """Without Ray it was decided; with Ray it is told by the engine's warden."""
    decided = {host: len(cards) for host, cards in service.placement.items()}
    return decided or engine.placement


def _figure(page: str, name: str) -> float | None:
    values = [
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith((f"{_FIGURES[name]}{{", f"{_FIGURES[name]} "))
    ]
    return sum(values) if values else None
