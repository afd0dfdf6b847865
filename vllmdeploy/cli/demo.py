"""`demo`: the main job for real on this machine, without Docker, cards or SSH."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import World
from vllmdeploy.errors import VllmdeployError

if TYPE_CHECKING:
    from vllmdeploy.workflows.demo_questions import Answered
    from vllmdeploy.workflows.service import ServicePlan
    from vllmdeploy.workflows.session import Session

_CHECKOUT = Path(__file__).parents[2]
_NO_ENGINE = (
    "no engine here, so Ray alone: `make demo` in a checkout installs vLLM for processors and"
    " makes a small model, then shows a served model too"
)


def mount(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    *,
    leave: Annotated[
        bool, typer.Option("--exit", help="Take it down again at once instead of staying.")
    ] = False,
) -> None:
    """Bring Ray, an engine and the API up on this machine by the same plan as on a fleet; ask it.

    Example: vllmdeploy demo --exit
    """
    import tempfile

    from vllmdeploy.workflows.demo import demo_files, engine_of

    started = time.monotonic()
    engine = engine_of(_CHECKOUT)
    with tempfile.TemporaryDirectory(prefix="vllmdeploy-demo-") as folder:
        config = demo_files(Path(folder), engine)
        output.say("The settings of this demo:")
        output.say(config.read_text("utf-8").rstrip())
        here = World(config=config, environ={})
        with here.session(here.loaded()) as session, _up_for_a_while(session):
            _show(session)
            if engine.there:
                _serve(session, started)
            else:
                output.say(_NO_ENGINE)
            output.say(f"up after {time.monotonic() - started:.0f} s")
            if not leave:
                output.say("Ctrl-C takes it down again")
                _until_interrupted()
    output.say("nothing of it is left on this machine")


@contextmanager
def _up_for_a_while(session: Session) -> Generator[None]:
    from vllmdeploy.cli import progress
    from vllmdeploy.workflows import demo as work

    try:
        with progress.shown() as on_event:
            failed = work.bring_up(session, on_event)
        if failed:
            raise failed
        yield
    except VllmdeployError as error:
        kept = work.keep_logs(session)
        if kept is not None:
            error.hint = f"its logs are in {kept}"
        raise
    finally:
        with progress.shown() as on_event:
            work.take_down(session, on_event)


def _serve(session: Session, started: float) -> None:
    from vllmdeploy.cli import progress
    from vllmdeploy.workflows import demo as work
    from vllmdeploy.workflows.demo_questions import ask_all

    with progress.shown() as on_event:
        served = work.serve(session, on_event)
    output.answer("")
    for number, answered in enumerate(ask_all(served.keys.gateway.address, served.keys.new_key)):
        if not number:
            output.say(f"first answer after {time.monotonic() - started:.0f} s")
        output.answer(_exchange(answered))
    output.answer(_what_next(served))


def _exchange(answered: Answered) -> str:
    lines = [f"POST {answered.route}  {answered.question}"]
    lines += [f"  -> {' '.join(text.split())}" for text in answered.texts]
    pace = answered.tokens / answered.seconds
    lines.append(f"  {answered.tokens} tokens in {answered.seconds:.2f} s, {pace:.0f} tokens/s")
    return "\n".join(lines)


def _what_next(served: ServicePlan) -> str:
    url = served.keys.gateway.address
    header = f"-H 'Authorization: Bearer {served.keys.new_key}' -H 'Content-Type: application/json'"
    body = '{"prompt": "Hello, I am a", "max_tokens": 50}'
    return f"""
The API:    {url}/generate, {url}/batch_generate, {url}/v1
Its health: {url}/health, its figures: {url}/metrics, its description: {url}/openapi.json
Try next:
  curl {url}/generate {header} -d '{body}'
  curl {url}/health
On your own hosts: vllmdeploy init, vllmdeploy up, vllmdeploy start-service MODEL TP
"""


def _show(session: Session) -> None:
    from vllmdeploy.cli.status_text import status_text
    from vllmdeploy.workflows.status import fleet_status

    output.answer(status_text(fleet_status(session, session.look(for_plan=False))))


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        output.say("")
