"""Every card of the fleet and who holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllmdeploy.accelerators import registry
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.cards import ledger
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One line of `devices`: a card, or a host without one and why."""

    host: str
    group: str
    vendor: str
    index: int | None = None
    name: str = ""
    memory_used_mib: int | None = None
    memory_total_mib: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    holder: str = ""
    usable: bool = False
    problem: str = ""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def devices(
    session: Session, found: Mapping[str, FoundHost | VllmdeployError]
) -> tuple[Device, ...]:
    lines: list[Device] = []
    for host in session.fleet.hosts:
        there = found[host.name]
        if isinstance(there, VllmdeployError):
            why = there.message.removeprefix(f"{host.name}: ").splitlines()[0]
            lines.append(Device(host=host.name, group=host.group, vendor="", problem=why))
        else:
            lines += _of_host(there)
    return tuple(lines)


def _of_host(found: FoundHost) -> list[Device]:
    host, vendor = found.host, found.cards.vendor
    mark = registry.named(vendor).mark
    shown = f"{vendor} ({mark})" if mark else vendor
    entries = ledger(found)
    if not entries:
        problem = found.cards.problem or "no card"
        return [Device(host=host.name, group=host.group, vendor=shown, problem=problem)]
    return [
        Device(
            host=host.name,
            group=host.group,
            vendor=shown,
            index=entry.card.index,
            name=entry.card.name,
            memory_used_mib=entry.card.memory_used_mib,
            memory_total_mib=entry.card.memory_total_mib,
            utilisation_percent=entry.card.utilisation_percent,
            temperature_c=entry.card.temperature_c,
            holder=entry.holder,
            usable=entry.usable,
            problem=entry.card.problem,
        )
        for entry in entries
    ]
