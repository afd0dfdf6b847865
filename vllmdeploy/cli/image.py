"""`image list`, `push`, `build`: the right image on every host, without a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import image_build, output
from vllmdeploy.cli.carry import end_with, show_plan
from vllmdeploy.cli.context import World, world
from vllmdeploy.cli.model_download import DryRun, Yes

if TYPE_CHECKING:
    from vllmdeploy.effects.execute import Stop
    from vllmdeploy.workflows.image_list import Line
    from vllmdeploy.workflows.image_push import Job, Pushed
    from vllmdeploy.workflows.session import Session

app = typer.Typer(help="Images on every host, moved without a registry.", no_args_is_help=True)
app.command()(image_build.build)

_HEADINGS = ("IMAGE", "HOST", "GROUP", "IDENTITY", "SIZE", "STORE")


@app.command(name="list")
def list_(context: typer.Context) -> None:
    """Show every image on every host. Equal identities are equal images, in either store.

    Example: vllmdeploy image list --json
    """
    from vllmdeploy.workflows import image_list

    here = world(context)
    with here.session(here.loaded()) as session:
        lines = image_list.lines(session)
        if here.json:
            output.document({"images": [line.document() for line in lines]})
        else:
            output.answer(output.table(_HEADINGS, [_row(line) for line in lines]))
        for failure in session.failures.values():
            raise failure


def _row(line: Line) -> tuple[str, ...]:
    if line.problem:
        return ("-", line.host, line.group, line.problem, "-", "-")
    identity = line.identity.removeprefix("sha256:")[:12]
    return (line.image, line.host, line.group, identity, _size(line.size), line.store)


@app.command()
def push(
    context: typer.Context,
    image: Annotated[
        str, typer.Argument(help="Name or id on the head, or else on another host.")
    ] = "",
    *,
    to: Annotated[
        str, typer.Option(help="Hosts and groups, apart by commas. Default: all that run it.")
    ] = "",
    interface: Annotated[
        str, typer.Option(help="Interface for the data. Default: the fastest shared network.")
    ] = "auto",
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Bring an image to other hosts: only the layers that they lack, each host helping the next.

    Example: vllmdeploy image push vllm/vllm-openai:v0.33.0-ray --to gpu-02,gpu-03
    """
    from vllmdeploy.workflows import cluster, image_push

    here = world(context)
    hosts = tuple(word.strip() for word in to.split(",") if word.strip())
    with here.session(here.loaded()) as session:
        wanted = image or image_build.usual_image(session)
        if dry_run:
            job = image_push.look_at(session, wanted, hosts, interface=interface)
            show_plan(here, image_push.decide(session, job))
        else:
            with cluster.locked(session, f"image push {wanted}") as stop:
                job = image_push.look_at(session, wanted, hosts, interface=interface)
                _bring(here, session, job, wanted, stop, yes=yes)
        end_with([one for host, one in session.failures.items() if host in job.asked])


def _bring(here: World, session: Session, job: Job, name: str, stop: Stop, *, yes: bool) -> None:
    from vllmdeploy.cli.model_sync import shown
    from vllmdeploy.workflows import cluster, image_push

    decided = image_push.decide(session, job)
    for note in decided.notes:
        output.say(f"note: {note}")
    if decided.steps:
        for step in decided:
            output.say(output.step_line(step))
        output.confirm(f"Bring {name} to {len(job.targets)} hosts?", yes=yes)
    if not decided.steps and not job.refused:
        return _conclude(here, job, name, image_push.Pushed(done=()))
    with shown(name) as on_event:
        pushed, unrecorded = cluster.recorded(
            session,
            f"image push {name}",
            lambda: image_push.carry_out(
                session, job, lambda event: None, on_event, stop, say=output.say
            ),
            tally=image_push.Pushed.tally,
        )
    if unrecorded:
        output.say(f"note: not in the audit log: {unrecorded.message}")
    return _conclude(here, job, name, pushed)


def _conclude(here: World, job: Job, name: str, pushed: Pushed) -> None:
    """Every failure is shown; the first one's exit code ends the program."""
    from vllmdeploy.plan.image_push import Standing

    had = (job.wanted.source, *job.wanted.standing(Standing.READY))
    if here.json:
        output.document(
            {
                "image": name,
                "id": job.wanted.image.id,
                "digest": pushed.digest,
                "from": job.wanted.source,
                "had": list(had),
                "done": list(pushed.done),
                "failed": {host: error.message for host, error in pushed.failed.items()},
                "received_bytes": pushed.wire,
            }
        )
    end_with(list(pushed.failed.values()))
    have = len(pushed.done) + len(had)
    output.say(f"{name} is on {have} hosts ({_size(pushed.wire)} received)")


def _size(count: float) -> str:
    from vllmdeploy.plan.models_files import size_text

    return size_text(count)
