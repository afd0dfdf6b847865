"""`plan`, `up`, `down`, `unlock`: what changes the whole fleet from one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import model_sync, output
from vllmdeploy.cli.carry import carry_out, end_with, show_plan
from vllmdeploy.cli.context import World, world
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.config.settings import Loaded
    from vllmdeploy.core.plan import Plan
    from vllmdeploy.effects.execute import OnEvent
    from vllmdeploy.workflows.session import Session

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show every command and its cause; run none.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Contact no host; plan for hosts that have nothing yet.")
]
Cards = Annotated[
    int, typer.Option("--cards", min=0, help="With --offline: cards per host.", metavar="N")
]


def mount(app: typer.Typer) -> None:
    for command in (plan, up, down, unlock):
        app.command()(command)


def plan(context: typer.Context, *, offline: Offline = False, cards: Cards = 8) -> None:
    """Show what `up` would do and why, and change nothing.

    Example: vllmdeploy plan --offline --cards 4
    """
    show_plan(world(context), _decided(world(context), offline=offline, cards=cards))


def up(
    context: typer.Context,
    *,
    dry_run: DryRun = False,
    yes: Yes = False,
    offline: Offline = False,
    cards: Cards = 8,
    watch: Annotated[
        bool, typer.Option("--watch", help="Then keep looking, and mend what breaks.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", min=1, help="With --watch: seconds between two looks.")
    ] = 15,
    spare_after: Annotated[
        float,
        typer.Option(
            "--spare-after", min=0, help="With --watch: seconds until a spare replaces a dead host."
        ),
    ] = 300,
) -> None:
    """Bring the fleet up: Ray nodes on every host, until Ray reports all hosts and all cards.

    Example: vllmdeploy up --dry-run
    """
    here = world(context)
    if dry_run or offline:
        show_plan(here, _decided(here, offline=offline, cards=cards))
        return
    loaded = here.loaded()
    with here.session(loaded) as session:
        if not (watch and session.failures):
            _bring_up(here, session, yes=yes)
    if watch:
        _keep_mending(here, loaded, every, spare_after)


def _bring_up(here: World, session: Session, *, yes: bool) -> None:
    from vllmdeploy.workflows import cluster, service_up

    session.need_all()
    with cluster.locked(session, "up") as stop:
        found = session.look_at_all()
        model_sync.bring_what_lacks(
            here, session, service_up.models_lacking(session, found), yes=yes
        )
        decided = service_up.decide_up(session, found)

        def with_images(on_event: OnEvent) -> Plan:
            return cluster.decide_with_images(
                session, found, on_event, stop, decide=service_up.decide_up
            )

        carry_out(here, session, decided, "up", stop, yes=yes, prepare=with_images)


def _keep_mending(here: World, loaded: Loaded, every_s: float, spare_after_s: float) -> None:
    """Until Ctrl-C or SIGTERM; the round at work gives the lock back before it ends."""
    import threading

    from vllmdeploy.workflows.mend import Watch

    watching = Watch(
        loaded=loaded,
        sessions=here.session,
        say=_timed,
        on_event=lambda _: None,
        every_s=every_s,
        spare_after_s=spare_after_s,
    )
    _timed(f"watching {len(loaded.fleet.everyone)} hosts, every {every_s:g} s; Ctrl-C ends it")
    try:
        watching.forever(threading.Event())
    finally:
        _timed(str(watching.tally))


def _timed(words: str) -> None:
    from datetime import datetime

    output.say(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {words}")


def down(
    context: typer.Context,
    *,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also remove specs, secrets, logs and caches.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Stop and remove what is ours on every host; specs and secrets stay unless --forget.

    Example: vllmdeploy down --yes
    """
    from vllmdeploy.workflows import cluster

    here = world(context)
    with here.session(here.loaded()) as session:
        if dry_run:
            found = session.look_at_those_there(cards=False)
            show_plan(here, cluster.decide_down(session, found, forget=forget))
            return
        with cluster.locked(session, "down") as stop:
            found = session.look_at_those_there(cards=False)
            decided = cluster.decide_down(session, found, forget=forget)
            carry_out(here, session, decided, "down", stop, yes=yes)
        end_with(list(session.failures.values()))


def unlock(context: typer.Context, *, yes: Yes = False) -> None:
    """Remove the fleet's lock when the run that took it is dead; show what says so.

    Example: vllmdeploy unlock
    """
    from vllmdeploy.workflows.unlock import look, remove

    here = world(context)
    loaded = here.loaded()
    with here.session(loaded, (loaded.fleet.head,)) as session:
        session.need_all()
        found = look(session)
        output.say(found.text)
        if not found.held:
            return
        if not found.gone:
            output.say("That run may be alive: two runs at once can break a fleet.")
            if yes:
                raise UsageError("not removed: --yes is for a holder that is certainly gone")
        output.confirm("Remove the lock?", yes=yes)
        remove(session, found)
        output.say("the lock is removed")


def _decided(here: World, *, offline: bool, cards: int) -> Plan:
    from vllmdeploy.workflows import service_up

    loaded = here.loaded()
    if offline:
        from vllmdeploy.workflows.offline import decide_offline

        return decide_offline(loaded, cards=cards)
    with here.session(loaded) as session:
        found = session.look_at_all()
        decided = service_up.decide_up(session, found)
        return model_sync.shown_first(session, service_up.models_lacking(session, found), decided)
