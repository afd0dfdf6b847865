"""`head` and `worker`: the flow for people who go from host to host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import carry_out, show_plan
from vllmdeploy.cli.cluster import DryRun, Yes
from vllmdeploy.cli.context import terminal, world
from vllmdeploy.errors import PreflightRefused, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllmdeploy.config.settings import Settings
    from vllmdeploy.core.plan import Plan
    from vllmdeploy.plan.observed import FoundHost
    from vllmdeploy.workflows.session import Session

_NO_HEAD = "run `vllmdeploy head` there first; a firewall between the two must let RAY_PORT through"

Ip = Annotated[str | None, typer.Argument(help="This host's address for the others.")]


def mount(app: typer.Typer) -> None:
    app.command()(head)
    app.command()(worker)


def head(
    context: typer.Context, ip: Ip = None, *, dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Make this machine a Ray head, and say what to run on the workers. Uses no SSH.

    Example: vllmdeploy head 10.0.0.1
    """
    from vllmdeploy.workflows import cluster, per_host
    from vllmdeploy.workflows.connecting import this_machine

    here = world(context).on(this_machine)
    with here.session(per_host.as_head(here.loaded(), ip)) as session:
        if dry_run:
            show_plan(here, cluster.decide_up(session, session.look_at_all()))
            return
        with cluster.locked(session, "head") as stop:
            found = session.look_at_all()
            decided = cluster.decide_up(session, found)
            carry_out(
                here,
                session,
                decided,
                "head",
                stop,
                yes=yes,
                prepare=lambda say: cluster.decide_with_images(session, found, say, stop),
            )
        _say_next(session)


def _say_next(session: Session) -> None:
    from vllmdeploy.workflows import cluster

    (found,) = session.look_at_all().values()
    groups = cluster.decide_groups(session, {found.host.name: found})
    (member,) = next(iter(groups.values())).members
    ip, token = member.place.ip, found.access.layout.ray_token
    output.say("on every worker:")
    output.answer(f"vllmdeploy worker {ip}")
    if member.token:
        output.say(
            "it fetches the Ray token from here by SSH; where it may not, copy"
            f" {token} there and add --token-file FILE"
        )


def worker(
    context: typer.Context,
    head_ip: Annotated[str, typer.Argument(help="The head's address.")],
    ip: Ip = None,
    *,
    token_file: Annotated[
        str | None,
        typer.Option(help="File with the head's Ray token; - is stdin. Default: ask by SSH."),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Make this machine a Ray worker of a head.

    Example: vllmdeploy worker 10.0.0.1 10.0.0.2
    """
    from vllmdeploy.workflows import cluster, per_host
    from vllmdeploy.workflows.connecting import this_machine

    here = world(context).on(this_machine)
    loaded = per_host.as_worker(here.loaded(), ip)
    head_ip = _address(head_ip)
    token = _token(loaded.settings, head_ip, token_file)
    with here.session(loaded) as session:
        (name,) = session.shells

        def decide(session: Session, found: Mapping[str, FoundHost]) -> Plan:
            return per_host.decide_worker(session, found[name], head_ip, token)

        if dry_run:
            found = session.look_at_all()
            decided = decide(session, found)
            if silence := per_host.head_silence(session, name, decided, head_ip):
                output.say(f"note: {silence}")
            show_plan(here, decided)
            return
        with cluster.locked(session, f"worker {head_ip}") as stop:
            found = session.look_at_all()
            decided = decide(session, found)
            if silence := per_host.head_silence(session, name, decided, head_ip):
                raise PreflightRefused([f"{name}: {silence}"], hint=_NO_HEAD)
            carry_out(
                here,
                session,
                decided,
                "worker",
                stop,
                yes=yes,
                prepare=lambda say: cluster.decide_with_images(
                    session, found, say, stop, decide=decide
                ),
            )


def _address(text: str) -> str:
    from vllmdeploy.config.readers import ip_address

    try:
        return ip_address(text)
    except ValueError as error:
        raise UsageError(
            f"HEAD_IP: {error}", hint="take the address that `vllmdeploy head` printed there"
        ) from error


def _token(settings: Settings, head_ip: str, source: str | None) -> str:
    from vllmdeploy.workflows.per_host import checked_token, fetch_token

    if settings.ray_auth == "none":
        return ""
    if source == "-":
        return checked_token(sys.stdin.readline(), "stdin")
    if source is not None:
        path = Path(source)
        try:
            return checked_token(path.read_text("utf-8"), str(path))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} does not hold a Ray token") from error
    return fetch_token(settings, head_ip, ask=output.ask_password if terminal() else None)
