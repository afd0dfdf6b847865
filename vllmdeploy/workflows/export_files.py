"""`export systemd|compose`: what would run, as files for people with their own tooling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from vllmdeploy.config.settings import Loaded
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan.export import Exported
from vllmdeploy.plan.export_compose import compose_files
from vllmdeploy.plan.export_units import units
from vllmdeploy.plan.instances_decide import decide_instances
from vllmdeploy.plan.instances_wanted import FoundInstances, InstancesWanted
from vllmdeploy.plan.service_gateway_node import GatewayWanted
from vllmdeploy.workflows.offline import imagined_groups
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.wanted import wanted_of

Kind = Literal["systemd", "compose"]
_RUNTIMES = {"systemd": "systemd", "compose": "docker"}
_EXECUTABLE = ("install.sh",)


def export_instances(
    loaded: Loaded, asked: InstancesWanted, kind: Kind, folder: Path, *, cards: int, force: bool
) -> tuple[Path, ...]:
    """One folder for each host, with all that it needs; no host is asked."""
    exported = _exported(loaded, asked, kind, cards=cards)
    write = units if kind == "systemd" else compose_files
    files = {
        folder / host / name: content
        for host in exported.by_host
        for name, content in write(exported, host).items()
    }
    there = [path for path in files if path.exists() and path.read_bytes() != files[path]]
    if there and not force:
        raise UsageError(
            f"other content is there: {', '.join(map(str, there))}", hint="--force replaces it"
        )
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if path.name in _EXECUTABLE else 0o644)
    return tuple(files)


def _exported(loaded: Loaded, asked: InstancesWanted, kind: Kind, *, cards: int) -> Exported:
    settings = loaded.settings.model_copy(update={"runtime": _RUNTIMES[kind]})
    session = Session(replace(loaded, settings=settings), {}, {})
    wanted = wanted_of(settings, loaded.fleet, package=session.package[1])
    if kind == "systemd" and wanted.python == "python3":
        wanted = replace(wanted, python="/usr/bin/python3")
    groups = imagined_groups(session, cards=cards)
    refused = [why for group in groups.values() if not group.members for why in group.refusals]
    if refused:
        raise PreflightRefused(refused)
    found = FoundInstances(
        members=tuple(one for group in groups.values() for one in group.members),
        lead=session.lead.name,
        gateway_port=settings.api_port,
    )
    return Exported(
        wanted=wanted,
        instances=decide_instances(wanted, asked, found, beside=session.lead.name),
        gateway=_gateway(loaded),
        lead=session.lead.name,
        package=session.package[0],
    )


def _gateway(loaded: Loaded) -> GatewayWanted:
    settings = loaded.settings
    return GatewayWanted(
        listen=settings.api_host,
        port=settings.api_port,
        keyless=settings.api_auth == "none",
        allow=tuple(map(str, settings.api_allow)),
        policy=settings.routing_strategy,
        scheduling=settings.scheduling_policy,
        default_model=settings.default_model or "",
        batch_size=settings.default_batch_size,
    )
