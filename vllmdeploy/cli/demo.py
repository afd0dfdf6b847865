"""`demo`: the main job for real on this machine, without Docker, cards or SSH."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.cluster import status_text
from vllmdeploy.cli.context import World

if TYPE_CHECKING:
    from vllmdeploy.workflows.session import Session

_STILL_TO_COME = (
    "still to come here: the engine with a small model behind the gateway, and its answers"
)


def mount(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    *,
    leave: Annotated[
        bool, typer.Option("--exit", help="Take it down again at once instead of staying.")
    ] = False,
) -> None:
    """Bring Ray up on this machine as a process, by the same plan as on a fleet; show it.

    Example: vllmdeploy demo --exit
    """
    from vllmdeploy.workflows.demo import demo_files

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vllmdeploy-demo-") as folder:
        config = demo_files(Path(folder))
        output.say("The settings of this demo:")
        output.say(config.read_text("utf-8").rstrip())
        here = World(config=config, environ={})
        with here.session(here.loaded()) as session, _up_for_a_while(session):
            _show(session)
            output.say(f"up after {time.monotonic() - started:.0f} s")
            output.say(_STILL_TO_COME)
            if not leave:
                output.say("Ctrl-C takes it down again")
                _until_interrupted()
    output.say("nothing of it is left on this machine")


@contextmanager
def _up_for_a_while(session: Session) -> Generator[None]:
    from vllmdeploy.cli import progress
    from vllmdeploy.workflows import demo as work

    with progress.shown() as on_event:
        failed = work.bring_up(session, on_event)
    try:
        if failed:
            raise failed
        yield
    finally:
        with progress.shown() as on_event:
            work.take_down(session, on_event)


def _show(session: Session) -> None:
    from vllmdeploy.workflows.status import fleet_status

    output.answer(status_text(fleet_status(session, session.look(for_plan=False))))


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        output.say("")
