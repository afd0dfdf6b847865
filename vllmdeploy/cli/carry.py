"""What every command that changes hosts does with its plan: show, ask, carry out, conclude."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from vllmdeploy.cli import output
from vllmdeploy.errors import Locked, VllmdeployError

if TYPE_CHECKING:
    from vllmdeploy.cli.context import World
    from vllmdeploy.core.plan import Plan
    from vllmdeploy.effects.execute import OnEvent, Stop
    from vllmdeploy.workflows.cluster import Applied
    from vllmdeploy.workflows.service_keys import Keys
    from vllmdeploy.workflows.session import Session


def show_plan(here: World, decided: Plan) -> None:
    if here.json:
        output.document(output.plan_document(decided))
    else:
        output.answer(output.plan_text(decided))


def carry_out(
    here: World,
    session: Session,
    decided: Plan,
    what: str,
    stop: Stop,
    *,
    yes: bool,
    prepare: Callable[[OnEvent], Plan] | None = None,
) -> None:
    """`prepare` runs after the yes and before the steps, and may refine the plan."""
    from vllmdeploy.cli import progress
    from vllmdeploy.workflows import cluster

    for note in decided.notes:
        output.say(f"note: {note}")
    if not decided.steps:
        output.say("nothing to do")
        if here.json:
            output.document({"steps": []})
        return
    for step in decided:
        output.say(output.step_line(step))
    output.confirm(f"Carry out these {len(decided)} steps?", yes=yes)
    with progress.shown() as on_event:
        refined = prepare(on_event) if prepare else decided
        applied = cluster.apply(session, refined, what, on_event, stop)
    conclude(here, applied, stop)


def shown_once(called: str, key: str) -> str:
    return f"{called} (shown once, kept on the head): {key}"


def conclude(here: World, applied: Applied, stop: Stop, *, keys: Keys | None = None) -> None:
    """Each failure once; the first one's exit code. `keys`: of which some may have come to the head
    although the rest failed, and would never be shown again."""
    new = keys.unseen(applied.outcomes) if keys is not None else ()
    if here.json:
        shown: dict[str, object] = {
            "steps": [output.outcome_document(one) for one in applied.outcomes]
        }
        output.document(shown | ({"new_keys": dict(new)} if new else {}))
    if applied.unrecorded:
        output.say(f"note: not in the audit log: {applied.unrecorded.message}")
    skipped = len(applied.skipped)
    if skipped:
        output.say(f"{skipped} step{'s' if skipped > 1 else ''} skipped")
    if not here.json and (applied.failed or stop.event.is_set()):
        for called, key in new:
            output.answer(shown_once(called, key))
    end_with([one.error for one in applied.failed if one.error])
    if stop.event.is_set():
        raise Locked(
            f"stopped: {stop.because}; what was begun is done",
            hint="see who else changes this fleet, then run this again",
        )
    output.say(f"done: {len(applied.outcomes)} steps")


def end_with(errors: Sequence[VllmdeployError]) -> None:
    """Every failure is shown; the first one's exit code ends the program."""
    for error in errors:
        output.error(error)
    if errors:
        raise typer.Exit(errors[0].exit_code)
