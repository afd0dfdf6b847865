"""`model download`: decide what comes from where, bring it to the head, make it READY."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllmdeploy.core.command import Command, check
from vllmdeploy.effects import hub
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.connect import is_this_machine
from vllmdeploy.effects.hub_lock import alone
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan.models import Asked, Verdict, may_download, space_refusals
from vllmdeploy.plan.models_files import Chosen, choose
from vllmdeploy.tools import model_files
from vllmdeploy.tools.hub import USUAL_REVISION, Done, Job, Listing, Source, Wanted
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.tools.manifest_names import ModelPlace, is_repository, name_of
from vllmdeploy.tools.model_files_found import FoundStore
from vllmdeploy.tools.model_files_tree import hub_cache
from vllmdeploy.workflows.models import SeenModels
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was typed. `staging` is a folder of this machine, where the head is another one."""

    repo: str
    source: str = "huggingface"
    revision: str = ""
    name: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    via_control: bool = False
    staging: Path | None = None
    at_once: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """Everything that was decided before the first byte."""

    wanted: Wanted
    origin: Manifest
    listing: Listing
    chosen: Chosen
    place: ModelPlace
    verdict: Verdict
    head: str
    here: bool
    folder: Path
    at_once: int

    @property
    def notes(self) -> tuple[str, ...]:
        mend = f"{self.place.name} is there and not whole: only what is wrong is fetched again"
        return (*self.chosen.notes, *((mend,) if self.verdict.mend else ()))


def wanted_of(session: Session, request: Request) -> Wanted:
    """Where the model is to come from; a folder of this machine is told from a repository."""
    path = Path(request.repo).expanduser()
    if path.is_dir():
        if request.revision:
            raise UsageError(f"{request.repo} is a folder, which has no revision")
        return Wanted(source="folder", repo=str(path.absolute()), revision="")
    if not is_repository(request.repo):
        raise UsageError(
            f"{request.repo} is neither OWNER/NAME on a hub nor a folder of this machine"
        )
    if request.source not in ("huggingface", "modelscope"):
        raise UsageError(f"{request.source}: a model comes from huggingface or modelscope")
    source: Source = "modelscope" if request.source == "modelscope" else "huggingface"
    of_hub = source == "huggingface"
    settings = session.settings
    return Wanted(
        source=source,
        repo=request.repo,
        revision=request.revision or USUAL_REVISION[source],
        endpoint=(settings.hf_endpoint or "") if of_hub else "",
        token=_token(settings.hf_token_file) if of_hub else "",
    )


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"HF_TOKEN_FILE {path}: cannot be read: {error}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"HF_TOKEN_FILE {path}: must hold one token")
    return token


def is_adoption(seen: SeenModels, wanted: Wanted, session: Session) -> str:
    """The name of the model, where the folder is one below MODEL_PATH on this head already."""
    folder = Path(wanted.repo).resolve()
    inside = folder.parent == Path(seen.root).resolve()
    here = is_this_machine(session.lead)
    return folder.name if wanted.source == "folder" and inside and here else ""


def decide(
    session: Session,
    seen: SeenModels,
    request: Request,
    wanted: Wanted,
    environ: Mapping[str, str],
    *,
    to_all: bool,
) -> Download:
    """Ask the hub and hold its answer against what is there; nothing is written."""
    head, here = session.lead.name, is_this_machine(session.lead)
    if not here and not request.via_control:
        raise UsageError(
            f"the head is {head}, and models are downloaded by the machine that keeps them",
            hint=f"run this on {head}, or add --via control to download here and push it there",
        )
    place = seen.place(request.name or name_of(wanted.repo))
    folder = Path(place.incoming) if here else (request.staging or _usual_staging()) / place.name
    listing = hub.listing(wanted, environ=environ, scratch=folder / ".cache")
    if listing.faults:
        raise PreflightRefused([f"{wanted.repo}: {fault}" for fault in listing.faults])
    origin, there = _origin(wanted, listing), seen.manifests.get(place.name)
    chosen = _chosen(request, listing, origin, there)
    asked = Asked(
        name=place.name,
        source=origin.source,
        repo=origin.repo,
        commit=origin.commit,
        sizes={file.path: file.size for file in chosen.files},
    )
    verdict = may_download(asked, seen.hosts[head].store, there)
    _refuse(seen, place, verdict, chosen.total, hosts=list(seen.hosts) if to_all else [head])
    if here and not verdict.present:
        _refuse_unwritable(Path(place.root))
    return Download(
        wanted=wanted,
        origin=there if there and verdict.mend else origin,
        listing=listing,
        chosen=chosen,
        place=place,
        verdict=verdict,
        head=head,
        here=here,
        folder=folder,
        at_once=request.at_once,
    )


def _refuse(
    seen: SeenModels, place: ModelPlace, verdict: Verdict, total: int, *, hosts: list[str]
) -> None:
    refusals = [verdict.refusal] if verdict.refusal else []
    if not verdict.present:
        stores = {host: found.store for host, found in seen.hosts.items()}
        refusals += space_refusals(stores, place.name, total, hosts)
    if refusals:
        raise PreflightRefused(refusals)


def _chosen(request: Request, listing: Listing, origin: Manifest, there: Manifest | None) -> Chosen:
    """Unless told otherwise: the files that the model had when it was whole; of a folder, all."""
    told = bool(request.include or request.exclude)
    if there and not told and _identity(there) == _identity(origin):
        files = tuple(file for file in listing.files if file.path in there.by_path)
        if len(files) == len(there.files):
            return Chosen(files)
    # Whoever names a folder means all of it.
    everything = ("*",) if origin.source == "folder" else ()
    return choose(listing.files, include=request.include or everything, exclude=request.exclude)


def _identity(manifest: Manifest) -> tuple[str, str, str]:
    return manifest.source, manifest.repo, manifest.commit


def _usual_staging() -> Path:
    return Path.home() / ".cache" / "vllmdeploy" / "models"


def _origin(wanted: Wanted, listing: Listing) -> Manifest:
    """The manifest without its files: where this model is from."""
    if wanted.source != "folder":
        return Manifest(
            source=wanted.source,
            repo=wanted.repo,
            revision=wanted.revision,
            commit=listing.commit,
            files=(),
        )
    known = hub_cache(str(Path(wanted.repo).resolve()))
    return Manifest(
        source="huggingface" if known else "folder",
        repo=known[0] if known else "",
        commit=known[1] if known else "",
        files=(),
    )


def _refuse_unwritable(root: Path) -> None:
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PreflightRefused(
            [f"{root} cannot be written by the user who runs this"],
            hint=f"run it as one who may, or `sudo install -d -o $USER {root}`",
        )


def manifest_of(download: Download, done: tuple[Done, ...]) -> Manifest:
    origin = download.origin
    return Manifest(
        source=origin.source,
        repo=origin.repo,
        revision=origin.revision,
        commit=origin.commit,
        files=tuple(sorted(ModelFile(one.path, one.size, one.sha256) for one in done)),
    )


@dataclass(frozen=True, slots=True)
class OnHead:
    """The head's shell. Where the head is this machine, files are ours: what root would make
    there, the process that downloads could not write."""

    session: Session
    seen: SeenModels
    here: bool

    def run(self, command: Command, doing: str) -> None:
        head = self.seen.head
        access = self.seen.hosts[head].access
        mine = replace(command, root=False) if self.here else access.of(command)
        check(head, mine, self.session.shells[head].run(mine), doing=doing)

    def look(self, name: str) -> FoundStore:
        head = self.seen.head
        fact = model_files.look(self.seen.root, name)
        return ask_one(self.session.shells[head], fact, self.seen.hosts[head].access)


def carry_out(
    session: Session,
    seen: SeenModels,
    download: Download,
    environ: Mapping[str, str],
    on_progress: hub.OnProgress,
) -> Manifest:
    """On the head itself: fetch into the incoming folder, then let it be seen."""
    head, place = OnHead(session, seen, here=True), download.place
    with alone(Path(place.lock), place.name):
        if download.verdict.mend:
            head.run(model_files.reopen(place), f"opening {place.name} again")
        head.run(model_files.begin(place, download.chosen.total), "making room")
        manifest = manifest_of(download, fetched(download, environ, on_progress))
        finish(head, place, manifest)
    return manifest


def fetched(
    download: Download, environ: Mapping[str, str], on_progress: hub.OnProgress
) -> tuple[Done, ...]:
    job = Job(
        wanted=download.wanted,
        folder=str(download.folder),
        commit=download.listing.commit,
        files=download.chosen.files,
        at_once=download.at_once,
    )
    return hub.fetch(job, environ=environ, on_progress=on_progress)


def finish(head: OnHead, place: ModelPlace, manifest: Manifest) -> None:
    """Only files of the manifest, under the model's own name, and READY last."""
    incoming = head.look(place.name).incoming(place.name)
    extra = sorted(set(incoming.tree.sizes) - set(manifest.by_path)) if incoming else []
    if extra:
        head.run(model_files.discard(place.incoming, extra), "removing what is no part of it")
    head.run(model_files.publish(place, manifest), f"publishing {place.name}")
    head.run(model_files.mark_ready(place, manifest), f"marking {place.name} as ready")
