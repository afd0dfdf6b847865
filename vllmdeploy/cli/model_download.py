"""`model download`: what comes from where, a question, and the model on the head."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import model_sync, output
from vllmdeploy.cli.context import World, terminal, world
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.workflows.models import SeenModels
    from vllmdeploy.workflows.models_download import Download, Request
    from vllmdeploy.workflows.session import Session

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


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
        need_head(session)
        wanted = models_download.wanted_of(session, request)
        by_hand = models_download.is_adoption(seen, wanted, session)
        if by_hand and dry_run:
            output.answer(f"{seen.head}: {by_hand} would be taken over as it is")
            return
        if by_hand:
            done = adopted(session, seen, by_hand)
        else:
            done = _downloaded(here, session, seen, request, sync=sync, dry_run=dry_run, yes=yes)
        if done:
            _sync(here, session, done, sync=sync)


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
    from vllmdeploy.workflows import models_download, models_fetch, models_push

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
    carry = models_fetch.carry_out if decided.here else models_push.carry_out_via_control
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


def _sync(here: World, session: Session, name: str, *, sync: bool | None) -> None:
    others = [host for host in session.fleet.hosts if host.name != session.lead.name]
    if not others or sync is False:
        return
    asked = sync is None and terminal() and not here.json
    if sync or (asked and typer.confirm(f"Bring {name} to {len(others)} other hosts?", err=True)):
        model_sync.sync_downloaded(here, session, name)
    else:
        output.say(f"to bring it to {len(others)} other hosts: vllmdeploy model sync {name}")


def adopted(session: Session, seen: SeenModels, name: str) -> str:
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


def need_head(session: Session) -> None:
    """What a service uses and what a model must be is known by the head alone."""
    if session.lead.name in session.failures:
        raise session.failures[session.lead.name]
