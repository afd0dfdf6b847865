"""`export firewall`: the lines that open each host's ports, printed or carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from vllmdeploy.config.profiles import INSTANCES, resolve
from vllmdeploy.config.settings import Loaded
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.errors import UsageError
from vllmdeploy.plan.export_firewall import Guarded, Pinned, apply, lines
from vllmdeploy.tools.firewall import TOOLS
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.wanted import wanted_of


def firewall_lines(loaded: Loaded, tools: Sequence[str]) -> Mapping[str, str]:
    """By host; `tools` empty: for every firewall that is known."""
    _check(tools)
    return lines(*_wanted(loaded), tools or tuple(TOOLS))


def decide_apply(session: Session, tools: Sequence[str]) -> Plan:
    """On every host by the one tool that is named, else by the firewall that is switched on."""
    _check(tools)
    if len(tools) > 1:
        raise UsageError(f"--apply takes one --tool, not {', '.join(tools)}")
    fleet, pinned = _wanted(session.loaded)
    draft = Draft()
    for found in session.look_at_all().values():
        apply(draft, found, "".join(tools), fleet, pinned)
    return draft.finished()


def _check(tools: Sequence[str]) -> None:
    unknown = [one for one in tools if one not in TOOLS]
    if unknown:
        raise UsageError(f"--tool {unknown[0]}: it is one of {', '.join(TOOLS)}")


def _wanted(loaded: Loaded) -> tuple[Sequence[Guarded], Pinned]:
    settings, fleet = loaded.settings, loaded.fleet
    gateways = {host.name for host in fleet.offering}
    ports = settings.engine_ports
    instances = resolve(settings, INSTANCES).vllm_ports or ()
    engines = (*instances, *range(ports.first, ports.last + 1))
    hosts = [
        Guarded(
            host=one.name,
            ip=one.ip or one.address,
            head=one.head,
            gateway=one.name in gateways,
        )
        for one in fleet.everyone
    ]
    wanted = wanted_of(settings, fleet, package="")
    pinned = Pinned(
        engines=engines,
        api=settings.api_port,
        callers=tuple(map(str, settings.api_allow)),
        ray=None if settings.executor == "mp" else wanted.ports,
    )
    named = [one.host for one in hosts if not _is_address(one.ip)]
    if named:
        raise UsageError(
            f"a firewall needs addresses: {', '.join(named)} has none",
            hint="write ip= on its line of worker_nodes.txt",
        )
    return hosts, pinned


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
