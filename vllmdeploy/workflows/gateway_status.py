"""What the fleet's gateways do now, by their wardens' word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllmdeploy.config.front_door import api_url
from vllmdeploy.core.host import Host
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.service_gateways import gateway_of
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """One gateway: without it the models that run answer nobody."""

    host: str
    address: str
    state: str
    why: str = ""
    restarts: int = 0


def gateway_statuses(
    session: Session, found: Mapping[str, FoundHost | VllmdeployError], *, serving: bool
) -> tuple[GatewayStatus, ...]:
    """`serving`: there is something to be a gateway for; it is missed only then."""
    each = (_of(session, host, found[host.name], serving) for host in session.fleet.offering)
    return tuple(one for one in each if one is not None)


def _of(
    session: Session, host: Host, found: FoundHost | VllmdeployError, serving: bool
) -> GatewayStatus | None:
    address = api_url(session.settings, host)
    if isinstance(found, VllmdeployError):
        if not serving:
            return None
        why = f"{host.name} does not answer"
        return GatewayStatus(host=host.name, address=address, state="unreachable", why=why)
    node = gateway_of(session.wanted, found)
    if node is None and not serving:
        return None
    state, why = gateway_state(found, node)
    if node is None and not found.engine.problem:
        why = "it is not there; `vllmdeploy up` makes it"
    return GatewayStatus(
        host=host.name,
        address=address,
        state=state,
        why=why,
        restarts=node.restarts if node else 0,
    )


def gateway_state(found: FoundHost, node: FoundNode | None) -> tuple[str, str]:
    if found.engine.problem:
        return "no docker", found.engine.problem
    if node is None:
        return "absent", "no gateway yet; it comes with the first service"
    if not node.running:
        return "stopped", node.stopped
    warden = found.wardens.get(node.name)
    if warden is None or warden.state == "running":
        return "ready", ""
    return warden.state, warden.reason
