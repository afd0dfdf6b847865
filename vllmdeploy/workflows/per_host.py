"""The per-host flow: a head or a worker, brought up on the host itself and without SSH."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from vllmdeploy.accelerators import registry
from vllmdeploy.config.settings import Loaded, Settings
from vllmdeploy.core.command import check
from vllmdeploy.core.host import DEFAULT_GROUP, Fleet, Host
from vllmdeploy.core.plan import Plan
from vllmdeploy.effects.ask import ask_access, ask_one
from vllmdeploy.effects.connect import is_this_machine
from vllmdeploy.errors import HostError, HostKeyUnknown, PreflightRefused, UsageError
from vllmdeploy.plan.group import decide_group
from vllmdeploy.plan.network import Place
from vllmdeploy.plan.node_steps import Payload
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.up import plan_worker
from vllmdeploy.tools import access, files, network
from vllmdeploy.workflows.connecting import connect_all
from vllmdeploy.workflows.session import Session

LEAST_TOKEN = 8


def as_head(loaded: Loaded, ip: str | None) -> Loaded:
    """The same settings for a fleet of this machine alone, as a head."""
    return _alone(loaded, ip, head=True)


def as_worker(loaded: Loaded, ip: str | None) -> Loaded:
    return _alone(loaded, ip, head=False)


def _alone(loaded: Loaded, ip: str | None, *, head: bool) -> Loaded:
    listed = next((host for host in loaded.fleet.hosts if is_this_machine(host)), None)
    name = socket.gethostname()
    host = listed or Host(name=name, address="localhost", group=DEFAULT_GROUP)
    here = replace(host, head=head, ip=ip or host.ip)
    settings = loaded.settings.model_copy(update={"head_ip": None})
    return replace(loaded, settings=settings, fleet=Fleet((here,)))


def decide_worker(session: Session, found: FoundHost, head_ip: str, token: str) -> Plan:
    if head_ip == "127.0.0.1" or found.links.with_ip(head_ip):
        raise UsageError(
            f"{head_ip} is an address of this machine; a worker joins another machine's head",
            hint="`vllmdeploy head` makes this machine a head",
        )
    group = decide_group(
        session.wanted,
        found.host.group,
        [found],
        lambda host: registry.named(host.cards.vendor),
    )
    if group.refusals:
        raise PreflightRefused(group.refusals)
    (member,) = group.members
    member = replace(member, head=Place(ip=head_ip))
    content, _ = session.package
    plan = plan_worker(session.wanted, member, Payload(content, token), session.supervisor)
    return replace(plan, notes=group.notes)


def head_silence(session: Session, name: str, decided: Plan, head_ip: str) -> str:
    """Why what is decided would wait for its head; an empty text where it would not."""
    settings = session.settings
    if settings.executor == "mp" or not decided.steps:
        return ""
    reason = ask_one(session.shells[name], network.accepts(head_ip, settings.ray_port))
    return f"no Ray head at {head_ip}:{settings.ray_port}: {reason}" if reason else ""


def checked_token(text: str, source: str) -> str:
    token = text.strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or any(map(str.isspace, token)):
        raise UsageError(f"{source} does not hold a Ray token", hint="take the head's ray_token")
    return token


def fetch_token(settings: Settings, head_ip: str, *, ask: Callable[[str], str] | None) -> str:
    """The head's token, read over SSH as the head's own user may read it."""
    head = Host(name=head_ip, address=head_ip, head=True)
    shells, failures = connect_all([head], settings, ask=ask)
    if head_ip in failures:
        raise _not_fetched(failures[head_ip])
    shell = shells[head_ip]
    try:
        cluster = settings.cluster_name
        sudo = cast("access.Sudo", settings.sudo)
        way = ask_access(shell, cluster, sudo)
        command = way.of(files.read(way.layout.ray_token))
        hint = "run `vllmdeploy head` there first, or give --token-file"
        result = check(head_ip, command, shell.run(command), doing="fetching the token", hint=hint)
        return checked_token(result.stdout, f"{head_ip}:{way.layout.ray_token}")
    finally:
        shell.close()


def _not_fetched(failure: HostError) -> HostError:
    """What to do next differs here: the head is no host of this machine's settings."""
    if not isinstance(failure, HostKeyUnknown):
        return failure
    return HostKeyUnknown(
        failure.host,
        failure.message.removeprefix(f"{failure.host}: "),
        hint=f"`vllmdeploy trust {failure.host}` shows the key and records it; or copy the head's"
        " ray_token to here and add --token-file FILE, which needs no SSH",
    )
