"""The nodes' logs of several hosts as one stream, each line with its host's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vllmdeploy.core.command import check
from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.effects.ask import ask_access
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import UsageError, VllmdeployError
from vllmdeploy.plan.observed import FoundHost, lone_worker
from vllmdeploy.plan.service_gateway_node import gateway_name
from vllmdeploy.workflows.session import Session

_FOREVER_S = 365 * 86400.0


def chosen(fleet: Fleet, names: Sequence[str]) -> tuple[Host, ...]:
    """The named hosts, or all; a name that is not in the fleet is an error that lists those."""
    known = {host.name: host for host in fleet.everyone}
    for name in names:
        if name not in known:
            raise UsageError(f"{name} is not in the fleet", hint=f"there are: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else fleet.hosts


def show_logs(
    session: Session,
    hosts: Sequence[Host],
    *,
    tail: int,
    follow: bool,
    on_line: Callable[[str], None],
) -> tuple[VllmdeployError, ...]:
    """Why some hosts' logs could not be shown to their end."""
    width = max(len(host.name) for host in hosts)

    def show(host: Host) -> None:
        shell = session.shells[host.name]
        cluster = session.wanted.cluster
        way = ask_access(shell, cluster, session.sudo)
        name = _node(session, host)
        command = session.supervisor.logs(name, way.layout, tail=tail, follow=follow)
        bounded = way.of(replace(command, limit_s=_FOREVER_S if follow else 60))
        prefix = f"{host.name.ljust(width)} | "
        result = shell.run(bounded, on_line=lambda line: on_line(prefix + line.rstrip("\n")))
        hint = f"vllmdeploy status says whether there is a node on {host.name}"
        check(host.name, bounded, result, doing="reading the logs", hint=hint)

    there = [host for host in hosts if host.name in session.shells]
    answers = each(there, show, at_once=len(there) or 1)
    return tuple(answer for answer in answers if isinstance(answer, VllmdeployError))


def _node(session: Session, host: Host) -> str:
    if host in session.fleet.fronts:
        return gateway_name(session.wanted)
    role = "worker" if not host.head or _is_lone_worker(session, host) else "head"
    return f"{session.wanted.cluster}-ray-{role}"


def _is_lone_worker(session: Session, host: Host) -> bool:
    if len(session.fleet.hosts) != 1:
        return False
    found = session.look(for_plan=False, cards=False)[host.name]
    return isinstance(found, FoundHost) and bool(
        lone_worker(session.fleet, found, session.wanted.cluster)
    )
