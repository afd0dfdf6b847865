"""`model download`, `list`, `verify`, `remove`: models on the head and on every host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import model_sync, output
from vllmdeploy.cli.context import World, terminal, world
from vllmdeploy.errors import EXIT_COMMAND, UsageError, VllmdeployError

if TYPE_CHECKING:
    from vllmdeploy.plan.models import Standing
    from vllmdeploy.workflows.models import SeenModels
    from vllmdeploy.workflows.models_download import Download, Request
    from vllmdeploy.workflows.session import Session

app = typer.Typer(
    help="Models on the head and on every host, each provably whole.", no_args_is_help=True
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[str, typer.Argument(help="The model's folder in MODEL_PATH.")]


@app.command()
def download(
    context: typer.Context,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME, or a folder of this machine.")],
    source: Annotated[str, typer.Argument(help="huggingface or modelscope.")] = "huggingface",
    *,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "",
    name: Annotated[str, typer.Option(help="Default: the last part of REPO.")] = "",
    include: Annotated[
        list[str] | None, typer.Option(help="Only files like this, as '*.json'. May be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No files like this. May be repeated.")
    ] = None,
    sync: Annotated[
        bool | None, typer.Option("--sync/--no-sync", help="Bring it to all hosts. Default: ask.")
    ] = None,
    via: Annotated[
        str, typer.Option(help="control: download here and push it to a head without internet.")
    ] = "",
    staging: Annotated[
        Path | None, typer.Option(help="With --via control: where files are kept meanwhile.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Files at the same time.")] = 8,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Download a model to the head: one format of weights, every file verified, READY last.

    Example: vllmdeploy model download meta-llama/Llama-3-8B-instruct modelscope
    """
    from vllmdeploy.workflows import models, models_download

    if via not in ("", "control"):
        raise UsageError(f"--via {via}: only control is known")
    here = world(context)
    loaded = here.loaded()
    request = models_download.Request(
        repo=repo,
        source=source,
        revision=revision,
        name=name,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        via_control=via == "control",
        staging=staging,
        at_once=at_once,
    )
    hosts = None if sync is not False else (loaded.fleet.head,)
    with here.session(loaded, hosts) as session:
        seen = models.look(session)
        _need_head(session)
        wanted = models_download.wanted_of(session, request)
        adopted = models_download.is_adoption(seen, wanted, session)
        if adopted and dry_run:
            output.answer(f"{seen.head}: {adopted} would be taken over as it is")
            return
        if adopted:
            done = _adopted(session, seen, adopted)
        else:
            done = _downloaded(here, session, seen, request, sync=sync, dry_run=dry_run, yes=yes)
        if done:
            _sync(here, session, done, sync=sync)


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
        bool, typer.Option("--repair", help="Say for each host which command mends it.")
    ] = False,
) -> None:
    """Hold a model on every host against its manifest; a folder made by hand gets one.

    Exit code 4: some host has it, and not whole.

    Example: vllmdeploy model verify Llama-3-8B-instruct --deep
    """
    from vllmdeploy.cli import model_text
    from vllmdeploy.workflows import models

    here = world(context)
    with here.session(here.loaded()) as session:
        seen = models.look(session)
        _need_head(session)
        seen.place(name)
        if name in seen.broken:
            raise UsageError(seen.broken[name], hint=f"`model remove {name}` and download it again")
        if name not in seen.names:
            raise UsageError(
                f"no host has a model {name} in {seen.root}", hint=model_text.known_names(seen)
            )
        head = seen.hosts[seen.head].store.model(name)
        if head is not None and not head.digest:
            _adopted(session, seen, name)
            seen = models.look(session)
        standings = _judged(session, seen, name, deep=deep)
        _conclude(here, session, seen, name, standings, repair=repair)


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
            _need_head(session)
            show_plan(here, models.decide_remove(seen, name))
            return
        with cluster.locked(session, f"model remove {name}") as stop:
            seen = models.look(session)
            decided = models.decide_remove(seen, name)
            carry_out(here, session, decided, f"model remove {name}", stop, yes=yes)
        for failure in session.failures.values():
            raise failure


def _need_head(session: Session) -> None:
    """What a service uses and what a model must be is known by the head alone."""
    if session.lead.name in session.failures:
        raise session.failures[session.lead.name]


def _downloaded(
    here: World,
    session: Session,
    seen: SeenModels,
    request: Request,
    *,
    sync: bool | None,
    dry_run: bool,
    yes: bool,
) -> str:
    """The model's name once it is on the head, nothing after a dry run."""
    from vllmdeploy.cli import model_progress, model_text
    from vllmdeploy.workflows import models_download, models_push

    wanted = models_download.wanted_of(session, request)
    decided = models_download.decide(
        session, seen, request, wanted, here.environ, to_all=sync is True
    )
    # One document on stdout: with --sync it is that of the sync.
    quiet = sync is True and not dry_run
    _show_download(here, seen, decided, as_answer=dry_run, quiet=quiet)
    if dry_run:
        return ""
    if decided.verdict.present:
        return decided.place.name
    output.confirm("Download this?", yes=yes)
    carry = models_download.carry_out if decided.here else models_push.carry_out_via_control
    with model_progress.shown() as on_progress:
        manifest = carry(session, seen, decided, here.environ, on_progress)
    if here.json and not quiet:
        output.document(model_text.manifest_document(decided.place.name, manifest))
    count = f"{len(manifest.files)} files, every hash verified"
    output.say(f"{seen.head}: {decided.place.name} is ready, {count}")
    return decided.place.name


def _show_download(
    here: World, seen: SeenModels, decided: Download, *, as_answer: bool, quiet: bool
) -> None:
    from vllmdeploy.cli import model_text

    if here.json:
        if as_answer or (decided.verdict.present and not quiet):
            output.document(model_text.download_document(decided))
        return
    text = model_text.download_text(seen, decided)
    (output.answer if as_answer else output.say)(text)


def _adopted(session: Session, seen: SeenModels, name: str) -> str:
    from vllmdeploy.cli import model_progress
    from vllmdeploy.plan.models_files import weight_notes
    from vllmdeploy.workflows import models

    model = seen.hosts[seen.head].store.model(name)
    if model is not None and model.digest:
        output.say(f"{seen.head}: {name} has a manifest already")
        return name
    with model_progress.hashing() as on_bytes:
        manifest = models.adopt(session, seen, name, on_bytes)
    output.say(
        f"{seen.head}: {name} was put there by hand; its manifest is computed now"
        f" ({len(manifest.files)} files, {manifest.digest[:12]})"
    )
    for note in weight_notes(tuple(manifest.by_path)):
        output.say(f"note: {note}")
    return name


def _sync(here: World, session: Session, name: str, *, sync: bool | None) -> None:
    others = [host for host in session.fleet.hosts if host.name != session.lead.name]
    if not others or sync is False:
        return
    asked = sync is None and terminal() and not here.json
    if sync or (asked and typer.confirm(f"Bring {name} to {len(others)} other hosts?", err=True)):
        model_sync.sync_downloaded(here, session, name)
    else:
        output.say(f"to bring it to {len(others)} other hosts: vllmdeploy model sync {name}")


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


def _conclude(
    here: World,
    session: Session,
    seen: SeenModels,
    name: str,
    standings: Mapping[str, Standing | VllmdeployError],
    *,
    repair: bool,
) -> None:
    from vllmdeploy.cli import model_text
    from vllmdeploy.plan.models import Standing, State

    judged = {host: one for host, one in standings.items() if isinstance(one, Standing)}
    if here.json:
        documents = {host: model_text.standing_document(one) for host, one in judged.items()}
        output.document({"model": name, "hosts": documents})
    else:
        output.answer(model_text.verify_text(seen, name, judged))
    wrong = [host for host, one in judged.items() if one.state not in (State.READY, State.ABSENT)]
    if repair:
        for host in wrong:
            output.say(model_text.repair_hint(seen, host, name))
    errors = [one for one in standings.values() if isinstance(one, VllmdeployError)]
    for error in [*errors, *session.failures.values()]:
        raise error
    if wrong:
        raise typer.Exit(EXIT_COMMAND)
