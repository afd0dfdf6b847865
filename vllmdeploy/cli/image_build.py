"""`image build`: show what would be built from what, ask, build, and say what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import show_plan
from vllmdeploy.cli.context import world
from vllmdeploy.cli.model_download import DryRun, Yes
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.workflows.session import Session


def usual_image(session: Session) -> str:
    """IMAGE of the head's group."""
    image = session.wanted.groups[session.lead.group].image
    if not image:
        raise UsageError("which image? IMAGE is not set", hint="name it: `image push NAME`")
    return image


def build(
    context: typer.Context,
    image: Annotated[
        str, typer.Argument(help="What to build on. Default: IMAGE, and Python 3.11 for --cpu.")
    ] = "",
    *,
    wheels: Annotated[
        Path | None, typer.Option(help="Folder of wheels: the build then asks no network at all.")
    ] = None,
    tag: Annotated[str, typer.Option(help="Name of the new image.")] = "",
    cpu: Annotated[
        bool, typer.Option("--cpu", help="vLLM for processors with Ray, instead of Ray alone.")
    ] = False,
    on: Annotated[str, typer.Option(help="Host that builds. Default: the head.")] = "",
    index: Annotated[str, typer.Option(help="Package index other than the usual one.")] = "",
    extra_index: Annotated[
        str, typer.Option(help="Package index beside it, as one with CPU builds of torch.")
    ] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Put Ray onto a stock vLLM image; nothing else in it changes. `image push` spreads it.

    Example: vllmdeploy image build vllm/vllm-openai:v0.33.0 --wheels ./wheels
    """
    from vllmdeploy.effects.audit import Tally
    from vllmdeploy.workflows import cluster, image_build

    here = world(context)
    options = image_build.Options(
        reference=image,
        wheels=wheels,
        tag=tag,
        cpu=cpu,
        on=on,
        index=index,
        extra_index=extra_index,
    )
    with here.session(here.loaded()) as session:
        job = image_build.look_at(session, options)
        decided = image_build.decide(job)
        if dry_run:
            show_plan(here, decided)
            return
        for note in decided.notes:
            output.say(f"note: {note}")
        for step in decided:
            output.say(output.step_line(step))
        output.confirm(f"Build on {job.host.name}?", yes=yes)
        job = image_build.pulled(session, job)
        output.say(f"{job.host.name}: building, which takes some minutes")
        name = job.build.tag if job.build else job.reference
        made, unrecorded = cluster.recorded(
            session,
            f"image build {name} on {job.host.name}",
            lambda: image_build.carry_out(session, job),
            tally=lambda _: Tally(done=1),
        )
        if unrecorded:
            output.say(f"note: not in the audit log: {unrecorded.message}")
        if here.json:
            labels = dict(made.labels)
            output.document({"image": name, "id": made.id, "host": job.host.name, "labels": labels})
        output.say(f"{name} is on {job.host.name}: set IMAGE={name}, then `image push`")
