"""One line about an instance, for tables and for JSON: where it is, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.instances_wanted import node_name, slot_of
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools.vllm_services import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    name: str
    of: str
    host: str
    cards: str
    address: str
    state: str
    why: str = ""

    @property
    def well(self) -> bool:
        return self.state in ("running", "answers")

    def document(self) -> dict[str, Any]:
        return asdict(self)


def brings_back(one: Service) -> str:
    """`up` mends all of a fleet, Ray too; whoever has instances only may not want that."""
    restart = f"`vllmdeploy instances restart {one.belongs_to} --number {slot_of(one).number}`"
    return f"`vllmdeploy up` or {restart} brings it back"


def known(one: Service, state: str, why: str = "") -> Known:
    return Known(
        name=one.name,
        of=one.belongs_to,
        host=one.head,
        cards=",".join(map(str, slot_of(one).cards)),
        address=one.url,
        state=state or "unknown",
        why=why,
    )


def known_on(cluster: str, one: Service, host: FoundHost | VllmdeployError | None) -> Known:
    """By what was found on its host, if that is in the fleet and answers."""
    if host is None:
        return known(one, "lost", f"{one.head} is not in the fleet")
    if isinstance(host, VllmdeployError):
        return known(one, "unreachable", f"{one.head} does not answer")
    name = node_name(cluster, one.name)
    node = next((node for node in host.ours(cluster) if node.name == name), None)
    if node is None:
        return known(one, "absent", f"its node is not there; {brings_back(one)}")
    if not node.running:
        return known(one, "stopped", f"its node is {node.state}; {brings_back(one)}")
    warden = host.wardens.get(name)
    if warden is None:
        return known(one, "starting", "its warden has not said anything yet")
    reasons = (warden.reason, brings_back(one) if warden.state == "crash-loop" else "")
    return known(one, warden.state, "; ".join(filter(None, reasons)))
