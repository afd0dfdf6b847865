"""`model download`: decide what comes from where, and whether it may; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.config.settings import Settings
from vllmdeploy.effects import hub
from vllmdeploy.effects.connect import is_this_machine
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan.models import Asked, Verdict, may_download, space_refusals
from vllmdeploy.plan.models_files import Chosen, choose
from vllmdeploy.tools.hub import TOKEN_KEYS, USUAL_REVISION, Listing, Source, Wanted
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.manifest_names import ModelPlace, is_repository, name_of
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
    endpoint, token = _access(session.settings, source)
    return Wanted(
        source=source,
        repo=request.repo,
        revision=request.revision or USUAL_REVISION[source],
        endpoint=endpoint,
        token=token,
    )


def _access(settings: Settings, source: Source) -> tuple[str, str]:
    if source == "modelscope":
        endpoint, file = settings.modelscope_endpoint, settings.modelscope_token_file
    else:
        endpoint, file = settings.hf_endpoint, settings.hf_token_file
    return endpoint or "", _token(TOKEN_KEYS[source], file) if file else ""


def _token(key: str, path: Path) -> str:
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{key} {path}: cannot be read: {error}") from error
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{key} {path}: must hold one token")
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
    verdict = may_download(_asked(place, origin, chosen), seen.hosts[head].store, there)
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


def _asked(place: ModelPlace, origin: Manifest, chosen: Chosen) -> Asked:
    return Asked(
        name=place.name,
        source=origin.source,
        repo=origin.repo,
        commit=origin.commit,
        sizes={file.path: file.size for file in chosen.files},
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
