"""`model download`, `list`, `verify`, `remove`: models on the head and on every host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import model_download, model_sync, output
from vllmdeploy.cli.context import World, world
from vllmdeploy.cli.model_download import DryRun, Yes
from vllmdeploy.errors import EXIT_COMMAND, UsageError, VllmdeployError

if TYPE_CHECKING:
    from vllmdeploy.plan.models import Standing
    from vllmdeploy.workflows.models import SeenModels
    from vllmdeploy.workflows.session import Session

app = typer.Typer(
    help="Models on the head and on every host, each provably whole.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The model's folder in MODEL_PATH.")]


app.command()(model_download.download)
app.command()(model_sync.sync)


@app.command(name="list")
def list_(context: typer.Context) -> None:
    """Show every model on every host: ready, partial, corrupt or absent; size and revision.

    Example: vllmdeploy model list --json
    """
    from vllmdeploy.cli import model_text
    from vllmdeploy.workflows import models

    here = world(context)
    with here.session(here.loaded()) as session:
        seen = models.look(session)
        if here.json:
            output.document(model_text.list_document(session, seen))
        else:
            output.answer(model_text.list_text(seen))
        for failure in session.failures.values():
            raise failure


@app.command()
def verify(
    context: typer.Context,
    name: Name,
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compute every hash on every host, not sizes only.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring what is wrong again, from hosts that are right.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Hold a model on every host against its manifest; a folder made by hand gets one.

    Exit code 4: some host has it, and not whole.

    Example: vllmdeploy model verify Llama-3-8B-instruct --deep --repair
    """
    from vllmdeploy.cli import model_text
    from vllmdeploy.workflows import models

    here = world(context)
    with here.session(here.loaded()) as session:
        seen = models.look(session)
        model_download.need_head(session)
        seen.place(name)
        if name in seen.broken:
            raise UsageError(seen.broken[name], hint=f"`model remove {name}` and download it again")
        if name not in seen.names:
            raise UsageError(
                f"no host has a model {name} in {seen.root}", hint=model_text.known_names(seen)
            )
        head = seen.hosts[seen.head].store.model(name)
        if head is not None and not head.digest:
            model_download.adopted(session, seen, name)
            seen = models.look(session)
        standings = _judged(session, seen, name, deep=deep)
        if repair and _repaired(here, session, seen, name, standings, yes=yes):
            seen = models.look(session)
            unjudged = {h: one for h, one in standings.items() if isinstance(one, VllmdeployError)}
            standings = {**_judged(session, seen, name, deep=False), **unjudged}
        _conclude(here, session, seen, name, standings)


@app.command()
def remove(
    context: typer.Context, name: Name, *, dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Delete a model on every host; refused while a stored service uses it.

    Example: vllmdeploy model remove Llama-3-8B-instruct --dry-run
    """
    from vllmdeploy.cli.carry import carry_out, show_plan
    from vllmdeploy.workflows import cluster, models

    here = world(context)
    with here.session(here.loaded()) as session:
        if dry_run:
            seen = models.look(session)
            model_download.need_head(session)
            show_plan(here, models.decide_remove(seen, name))
            return
        with cluster.locked(session, f"model remove {name}") as stop:
            seen = models.look(session)
            decided = models.decide_remove(seen, name)
            carry_out(here, session, decided, f"model remove {name}", stop, yes=yes)
        for failure in session.failures.values():
            raise failure


def _judged(
    session: Session, seen: SeenModels, name: str, *, deep: bool
) -> Mapping[str, Standing | VllmdeployError]:
    from vllmdeploy.cli import model_progress
    from vllmdeploy.workflows import models

    standings: dict[str, Standing | VllmdeployError] = {
        host: seen.standing(host, name) for host in seen.hosts
    }
    if name not in seen.manifests:
        output.say(f"{seen.head} has no manifest of {name}: hosts are held to their own marks only")
    elif deep:
        with model_progress.hashing() as on_bytes:
            standings |= models.verify_deep(session, seen, name, on_bytes)
    return standings


def _wrong(standings: Mapping[str, Standing | VllmdeployError]) -> list[str]:
    from vllmdeploy.plan.models import Standing, State

    fine = (State.READY, State.ABSENT)
    return [
        host
        for host, one in standings.items()
        if isinstance(one, Standing) and one.state not in fine
    ]


def _repaired(
    here: World,
    session: Session,
    seen: SeenModels,
    name: str,
    standings: Mapping[str, Standing | VllmdeployError],
    *,
    yes: bool,
) -> bool:
    """Whether anything was done: what the head itself lacks comes from where it was downloaded."""
    from vllmdeploy.workflows import sync as workflow

    wrong = _wrong(standings)
    if not wrong or seen.head in wrong:
        return False
    with model_sync.in_turn(session, name) as stop:
        options = workflow.Options(only=frozenset(wrong))
        _, synced = model_sync.bring(here, session, name, options, stop, yes=yes)
    for error in synced.failed.values():
        output.error(error)
    return True


def _conclude(
    here: World,
    session: Session,
    seen: SeenModels,
    name: str,
    standings: Mapping[str, Standing | VllmdeployError],
) -> None:
    from vllmdeploy.cli import model_text
    from vllmdeploy.plan.models import Standing

    judged = {host: one for host, one in standings.items() if isinstance(one, Standing)}
    if here.json:
        documents = {host: model_text.standing_document(one) for host, one in judged.items()}
        output.document({"model": name, "hosts": documents})
    else:
        output.answer(model_text.verify_text(seen, name, judged))
    wrong = _wrong(standings)
    for host in wrong:
        output.say(model_text.repair_hint(seen, host, name))
    errors = [one for one in standings.values() if isinstance(one, VllmdeployError)]
    for error in [*errors, *session.failures.values()]:
        raise error
    if wrong:
        raise typer.Exit(EXIT_COMMAND)
