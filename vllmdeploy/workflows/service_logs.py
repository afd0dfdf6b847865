"""The logs of one service as one stream: all its engines and ranks, each line with its host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from vllmdeploy.core.command import check
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import UsageError, VllmdeployError
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools import vllm_logs
from vllmdeploy.tools.vllm_services import Service, stored
from vllmdeploy.workflows.session import Session

_FOREVER_S = 365 * 86400.0


def show_service_logs(
    session: Session,
    name: str,
    *,
    tail: int,
    follow: bool,
    on_line: Callable[[str], None],
) -> tuple[VllmdeployError, ...]:
    """Why some hosts' logs could not be shown to their end."""
    found = session.look(for_plan=False, cards=False)
    hosts = {
        host.name: one
        for host in session.fleet.hosts
        if isinstance(one := found[host.name], FoundHost)
    }
    engines = _engines(session, hosts, name)
    addresses = _addresses(hosts)
    width = max(map(len, hosts))

    def show(host: FoundHost) -> None:
        labelled = vllm_logs.Labelled(host.host.name, engines, addresses, width)

        def line(text: str) -> None:
            for shown in labelled.lines(text.rstrip("\n")):
                on_line(shown)

        for folder in _folders(session, host):
            command = vllm_logs.read(folder, engines, tail=tail, follow=follow)
            bounded = host.access.of(replace(command, limit_s=_FOREVER_S if follow else 60.0))
            result = session.shells[host.host.name].run(bounded, on_line=line)
            check(host.host.name, bounded, result, doing=f"reading the logs of {name}")

    answers = each(list(hosts.values()), show, at_once=len(hosts))
    return tuple(answer for answer in answers if isinstance(answer, VllmdeployError))


def _folders(session: Session, host: FoundHost) -> list[str]:
    """Logs outlive their node, so that one that is gone can be read about too."""
    role = "head" if host.host.head else "worker"
    return [host.access.layout.logs(f"{session.wanted.cluster}-ray-{role}")]


def _engines(session: Session, hosts: Mapping[str, FoundHost], name: str) -> tuple[str, ...]:
    """The engines of this service, by what is stored on the hosts."""
    there: list[Service] = []
    unread: set[str] = set()
    for host in hosts.values():
        fact = stored(host.access.layout.services)
        for key, one in ask_one(session.shells[host.host.name], fact, host.access).items():
            if one.service:
                there.append(one.service)
            else:
                unread.add(key)
    engines = sorted({one.name for one in there if name in (one.belongs_to, one.name)})
    if engines or name in unread:
        return tuple(engines) or (name,)
    known = ", ".join(sorted({one.belongs_to for one in there})) or "none"
    raise UsageError(
        f"{name} is neither a host of the fleet nor a service",
        hint=f"hosts: {', '.join(host.name for host in session.fleet.hosts)}; services: {known}",
    )


def _addresses(hosts: Mapping[str, FoundHost]) -> dict[str, str]:
    """Names by IP, as Ray has them: a rank's line names the IP only."""
    return {
        node.ip: node.name
        for host in hosts.values()
        if host.ray
        for node in host.ray.alive().values()
    }
