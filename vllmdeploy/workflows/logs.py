"""The nodes' logs of several hosts as one stream, each line with its host's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import UsageError, VllmdeployError
from vllmdeploy.tools import access
from vllmdeploy.workflows.session import Session

_FOREVER_S = 365 * 86400.0


def chosen(fleet: Fleet, names: Sequence[str]) -> tuple[Host, ...]:
    """The named hosts, or all; a name that is not in the fleet is an error that lists those."""
    known = {host.name: host for host in fleet.hosts}
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
) -> None:
    width = max(len(host.name) for host in hosts)

    def show(host: Host) -> None:
        shell = session.shells[host.name]
        cluster = session.wanted.cluster
        way = access.decide(
            cluster, session.sudo, ask_one(shell, access.rights(cluster, session.sudo))
        )
        name = f"{cluster}-ray-{'head' if host.head else 'worker'}"
        command = session.supervisor.logs(name, way.layout, tail=tail, follow=follow)
        bounded = replace(command, limit_s=_FOREVER_S if follow else 60)
        prefix = f"{host.name.ljust(width)} | "
        shell.run(way.of(bounded), on_line=lambda line: on_line(prefix + line.rstrip("\n")))

    there = [host for host in hosts if host.name in session.shells]
    for answer in each(there, show, at_once=len(there) or 1):
        if isinstance(answer, VllmdeployError):
            raise answer
