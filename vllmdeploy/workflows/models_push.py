"""`model download --via control`: for a head without internet, download here and push it there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping

from vllmdeploy.effects import hub
from vllmdeploy.effects.hub_lock import alone
from vllmdeploy.effects.hub_push import Target, push
from vllmdeploy.errors import CommandFailed
from vllmdeploy.plan.models import hash_faults
from vllmdeploy.tools import model_files
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.workflows.models import SeenModels, hashes_on
from vllmdeploy.workflows.models_download import Download
from vllmdeploy.workflows.models_fetch import OnHead, fetched, finish, manifest_of
from vllmdeploy.workflows.session import Session

_TRIES = 2


def carry_out_via_control(
    session: Session,
    seen: SeenModels,
    download: Download,
    environ: Mapping[str, str],
    on_progress: hub.OnProgress,
) -> Manifest:
    """The copy on this machine goes once the head has the model."""
    head, place = OnHead(session, seen, here=False), download.place
    staging = download.folder
    with alone(staging.parent / f".{place.name}.lock", place.name):
        staging.mkdir(parents=True, exist_ok=True)
        manifest = manifest_of(download, fetched(download, environ, on_progress))
        if download.verdict.mend:
            head.run(model_files.reopen(place), f"opening {place.name} again")
        head.run(model_files.begin(place, manifest.total), "making room")
        _pushed(session, seen, download, manifest, on_progress)
        finish(head, place, manifest)
        shutil.rmtree(staging)
    return manifest


def _pushed(
    session: Session,
    seen: SeenModels,
    download: Download,
    manifest: Manifest,
    on_progress: hub.OnProgress,
) -> None:
    """Until the head itself computes the manifest's hashes; wrong files are sent once more."""
    head, place = OnHead(session, seen, here=False), download.place
    shell, host = session.shells[seen.head], seen.hosts[seen.head]
    target = Target(shell, host.access, place.incoming)
    wrong = manifest.files
    found: dict[str, str] = {}
    for _ in range(_TRIES):
        incoming = head.look(place.name).incoming(place.name)
        there = dict(incoming.tree.sizes) if incoming else {}
        too_long = [file.path for file in wrong if there.get(file.path, 0) > file.size]
        if too_long:
            head.run(model_files.discard(place.incoming, too_long), "removing what is wrong")
            there = {path: size for path, size in there.items() if path not in too_long}
        counter = _Counter(wrong, there, on_progress)
        push(download.folder, target, wrong, there, counter.add)
        found = hashes_on(
            session,
            host,
            seen.head,
            place.incoming,
            {file.path: file.size for file in manifest.files},
            lambda name, done, total: None,
        )
        wrong = tuple(file for file in manifest.files if found.get(file.path) != file.sha256)
        if not wrong:
            return
        paths = [file.path for file in wrong]
        head.run(model_files.discard(place.incoming, paths), "removing what is wrong")
    raise CommandFailed(
        seen.head, f"receive {place.name}", 1, "\n".join(hash_faults(manifest, found)[:1])
    )


class _Counter:
    """Turns bytes that arrived into progress."""

    def __init__(
        self, files: tuple[ModelFile, ...], there: Mapping[str, int], on_progress: hub.OnProgress
    ) -> None:
        self._on_progress = on_progress
        self._total = sum(file.size for file in files)
        self._files = len(files)
        self._done = sum(file.size for file in files if there.get(file.path) == file.size)
        self._before = self._done
        self._began = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        seconds = max(0.001, time.monotonic() - self._began)
        self._on_progress(
            hub.Progress(
                bytes_done=self._done,
                bytes_total=self._total,
                files_done=0,
                files_total=self._files,
                bytes_per_s=(self._done - self._before) / seconds,
                waiting="to the head",
            )
        )
