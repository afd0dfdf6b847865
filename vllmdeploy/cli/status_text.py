"""What `status` shows to people: hosts, services, instances, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vllmdeploy.cli import output

if TYPE_CHECKING:
    from vllmdeploy.plan.instances_known import Known
    from vllmdeploy.workflows.gateway_status import GatewayStatus
    from vllmdeploy.workflows.status import FleetStatus, ServiceStatus


def status_text(seen: FleetStatus) -> str:
    rows = [
        (
            host.host,
            host.group,
            host.role,
            host.state,
            host.ip or "-",
            "-" if host.cards is None else str(host.cards),
            host.vendor or "-",
            str(host.restarts),
            host.why,
        )
        for host in seen.hosts
    ]
    headings = ("HOST", "GROUP", "ROLE", "STATE", "IP", "CARDS", "VENDOR", "RESTARTS", "WHY")
    ready = sum(host.state == "ready" for host in seen.hosts)
    cards = sum(host.cards or 0 for host in seen.hosts)
    noun = "card" if cards == 1 else "cards"
    summary = f"{seen.cluster}: {ready} of {len(seen.hosts)} hosts ready, {cards} {noun}"
    warnings = (f"warning: {text}" for text in seen.warnings)
    services = (services_text(seen),) if seen.services else ()
    instances = (instances_text(seen.instances),) if seen.instances else ()
    gateways = (gateways_text(seen.gateways),) if seen.gateways else ()
    parts = (output.table(headings, rows), summary, *services, *instances, *gateways, *warnings)
    return "\n".join(parts)


def services_text(seen: FleetStatus) -> str:
    headings = (
        *("SERVICE", "GROUP", "TPxPP", "STATE", "UP", "SINCE", "REQUESTS", "REQ/S", "TOKENS/S"),
        *("KV", "RESTARTS", "CARDS", "WHY"),
    )
    return output.table(headings, [_service_row(one) for one in seen.services])


def _service_row(one: ServiceStatus) -> tuple[str, ...]:
    other_model = one.model and one.model != one.service
    return (
        f"{one.service} ({one.model})" if other_model else one.service,
        one.group,
        f"{one.tensor_parallel}x{one.pipeline_parallel}",
        one.state,
        f"{one.ready}/{one.replicas}",
        one.since or "-",
        "-" if one.running is None else f"{one.running}+{one.waiting or 0}",
        "-" if one.requests_per_s is None else f"{one.requests_per_s:.1f}",
        "-" if one.tokens_per_s is None else f"{one.tokens_per_s:.0f}",
        "-" if one.cache is None else f"{one.cache:.0%}",
        str(one.restarts),
        _cards(one.placement),
        one.why,
    )


def _cards(placement: Mapping[str, int]) -> str:
    return ",".join(f"{host}:{count}" for host, count in placement.items()) or "-"


def instances_text(found: Sequence[Known]) -> str:
    headings = ("INSTANCE", "HOST", "CARDS", "ADDRESS", "STATE", "WHY")
    rows = [
        (one.name, one.host, one.cards or "-", one.address, one.state, one.why) for one in found
    ]
    return output.table(headings, rows)


def gateways_text(found: Sequence[GatewayStatus]) -> str:
    headings = ("GATEWAY", "HOST", "STATE", "RESTARTS", "WHY")
    return output.table(
        headings, [(one.address, one.host, one.state, str(one.restarts), one.why) for one in found]
    )
