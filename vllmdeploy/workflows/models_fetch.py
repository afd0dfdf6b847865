"""`model download`, carried out on the head: fetch, verify, publish, READY last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllmdeploy.core.command import Command, check
from vllmdeploy.effects import hub
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.hub_lock import alone
from vllmdeploy.tools import model_files
from vllmdeploy.tools.hub import Done, Job
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files_found import FoundStore
from vllmdeploy.workflows.models import SeenModels
from vllmdeploy.workflows.models_download import Download
from vllmdeploy.workflows.session import Session


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
