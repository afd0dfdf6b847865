"""`status`, `logs`: the whole fleet looked at from one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import end_with
from vllmdeploy.cli.context import World, connect_lazily, world

if TYPE_CHECKING:
    from vllmdeploy.workflows.session import Session
    from vllmdeploy.workflows.status import FleetStatus


def mount(app: typer.Typer) -> None:
    for command in (status, logs):
        app.command()(command)


def status(
    context: typer.Context,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking, every 2 s.")] = False,
) -> None:
    """Show every host: its node, what Ray says of it, its cards, and why it is not ready.

    Example: vllmdeploy status --json
    """
    # Who keeps looking asks only those that answered at first, and again every 2 s.
    here = world(context) if watch else world(context).on(connect_lazily)
    with here.session(here.loaded()) as session:
        if watch:
            _watch(here, session)
            return
        _show_status(here, _seen(session))
        end_with(list(session.failures.values()))


def logs(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="Hosts, or one service. Default: all hosts.")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing.")] = False,
    tail: Annotated[
        int, typer.Option("--tail", min=0, help="Lines per host, or per engine of a service.")
    ] = 100,
) -> None:
    """Show the nodes' logs, or those of one service, each line with its host's name.

    Example: vllmdeploy logs gpu-02 -f
    """
    from vllmdeploy.workflows.logs import chosen, show_logs
    from vllmdeploy.workflows.service_logs import show_service_logs

    here = world(context)
    loaded = here.loaded()
    service = names[0] if names and len(names) == 1 else ""
    if service and service not in {host.name for host in loaded.fleet.everyone}:
        with here.on(connect_lazily).session(loaded) as session:
            unread = show_service_logs(
                session, service, tail=tail, follow=follow, on_line=output.answer
            )
            end_with([*session.failures.values(), *unread])
        return
    wanted = chosen(loaded.fleet, names or [])
    with here.session(loaded, wanted) as session:
        unread = show_logs(session, wanted, tail=tail, follow=follow, on_line=output.answer)
        end_with([*session.failures.values(), *unread])


def _seen(session: Session) -> FleetStatus:
    from vllmdeploy.effects.fanout import both
    from vllmdeploy.workflows.instances_status import instance_statuses
    from vllmdeploy.workflows.service_status import service_statuses
    from vllmdeploy.workflows.status import fleet_status

    found = session.look(for_plan=False)
    services, instances = both(
        lambda: service_statuses(session, found), lambda: instance_statuses(session, found)
    )
    return fleet_status(session, found, services, instances)


def _show_status(here: World, seen: FleetStatus) -> None:
    if here.json:
        output.document(seen.document())
    else:
        from vllmdeploy.cli.status_text import status_text

        output.answer(status_text(seen))


def _watch(here: World, session: Session) -> None:
    import time

    while True:
        seen = _seen(session)
        if not here.json:
            output.clear()
        _show_status(here, seen)
        time.sleep(2)
