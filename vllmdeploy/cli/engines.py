"""What `instances` and `rerank` share: their options, and how their plans are carried out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import conclude, show_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllmdeploy.cli.context import World
    from vllmdeploy.config.settings import Loaded, Settings
    from vllmdeploy.workflows.instances import InstancesPlan
    from vllmdeploy.workflows.instances_asked import CardShares
    from vllmdeploy.workflows.session import Session

Utilization = Annotated[
    str | None, typer.Option("--gpu-memory-utilization", help="Share of a card, as 0.96.")
]
NoMps = Annotated[bool, typer.Option("--no-mps", help="One engine per card, without CUDA MPS.")]
ThreadPercentage = Annotated[
    int | None,
    typer.Option("--thread-percentage", min=1, max=100, help="Most threads of an engine (MPS)."),
]
CacheBytes = Annotated[
    str,
    typer.Option(
        "--kv-cache-memory-bytes", help="KV cache of an engine, as 4g, not a share of the card."
    ),
]


def loaded_with(here: World, **flags: object) -> Loaded:
    given = {key: str(value) for key, value in flags.items() if value is not None}
    return here.loaded(given, bare_names=True)


def names(text: str) -> tuple[str, ...]:
    """Hosts apart by commas."""
    return tuple(filter(None, text.replace(" ", "").split(",")))


def shares_of(no_mps: bool, percentage: int | None, cache: str) -> CardShares:
    from vllmdeploy.config.readers import size
    from vllmdeploy.errors import UsageError
    from vllmdeploy.workflows.instances_asked import CardShares

    try:
        wanted = size(cache).bytes if cache else None
    except ValueError as error:
        raise UsageError(f"--kv-cache-memory-bytes: {error}") from error
    return CardShares(no_mps=no_mps, percentage=percentage, cache_bytes=wanted)


def carry_out(
    here: World,
    loaded: Loaded,
    decide: Callable[[Session], InstancesPlan],
    what: str,
    *,
    dry_run: bool,
    yes: bool,
    invite: Callable[[Settings, InstancesPlan], str] | None = None,
) -> None:
    from vllmdeploy.cli import progress
    from vllmdeploy.workflows import cluster, instances

    with here.session(loaded) as session:
        session.need_all()
        if dry_run:
            show_plan(here, decide(session).plan)
            return
        with cluster.locked(session, what) as stop:
            decided = decide(session)
            for note in decided.plan.notes:
                output.say(f"note: {note}")
            if not decided.plan.steps:
                output.say("nothing to do: it is as wanted")
                if here.json:
                    output.document({"steps": []})
                return
            for step in decided.plan:
                output.say(output.step_line(step))
            output.confirm(f"Carry out these {len(decided.plan)} steps?", yes=yes)
            with progress.shown() as on_event:
                applied = cluster.apply(session, decided.plan, what, on_event, stop)
                back = instances.way_back(session, decided, applied)
                if back.steps and not stop.event.is_set():
                    cluster.apply(session, back, f"{what}: undone", on_event, stop)
        conclude(here, applied, stop, keys=decided.keys)
        if invite and not here.json:
            output.answer(invite(session.settings, decided))
