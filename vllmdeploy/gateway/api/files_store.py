"""Files of /v1/files on disk: each key its own folder, each file its content and what is known."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from vllmdeploy.batch.durable import replace_file, sync_folder

FILE_ID = re.compile(r"file-[0-9a-f]{24}")
BATCH = "batch"
BATCH_OUTPUT = "batch_output"
_KNOWN = ".json"
_COMING = ".coming"
# What an empty file costs on disk, so that many of them cannot fill it either.
_LEAST = 4096
_FORGOTTEN_S = 86_400.0


def new_id(kind: str) -> str:
    return f"{kind}{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None

    def public(self) -> dict[str, object]:
        found: dict[str, object] = {"object": "file", **asdict(self), "status": "processed"}
        if self.expires_at is None:
            del found["expires_at"]
        return found


class FileStore:
    """Nothing is kept in memory: another gateway may take over, or serve the same folder.

    A file is there when its `.json` is: that is written last, and removed first.
    """

    def __init__(self, folder: Path, size_max: int) -> None:
        self.folder = folder
        self.size_max = size_max

    def open(self) -> None:
        """Raises OSError where the folder cannot be used."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(self.folder))
        self._drop_forgotten()

    def owners(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())

    def files(self, owner: str) -> Path:
        return self._made(owner, "files")

    def batches(self, owner: str) -> Path:
        return self._made(owner, "batches")

    def coming(self, owner: str) -> Path:
        """A path for a file that is being uploaded."""
        return self.files(owner) / f"{new_id('file-')}{_COMING}"

    def add(self, owner: str, source: Path, known: StoredFile) -> StoredFile:
        """A second name for the content of `source`, which may then be removed; may be done
        again after a kill."""
        folder = self.files(owner)
        (folder / known.id).unlink(missing_ok=True)
        os.link(source, folder / known.id)
        sync_folder(folder)
        replace_file(folder / f"{known.id}{_KNOWN}", json.dumps(asdict(known)).encode())
        return known

    def get(self, owner: str, id_: str) -> StoredFile | None:
        if not FILE_ID.fullmatch(id_):
            return None
        return _read(self.files(owner) / f"{id_}{_KNOWN}", time.time())

    def content(self, owner: str, id_: str) -> Path:
        return self.files(owner) / id_

    def all(self, owner: str) -> list[StoredFile]:
        """The newest first."""
        now = time.time()
        found = [_read(path, now) for path in self.files(owner).glob(f"file-*{_KNOWN}")]
        known = [one for one in found if one is not None]
        return sorted(known, key=lambda one: (one.created_at, one.id), reverse=True)

    def delete(self, owner: str, id_: str) -> None:
        folder = self.files(owner)
        (folder / f"{id_}{_KNOWN}").unlink(missing_ok=True)
        (folder / id_).unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all that is here, each file once however often it is linked to."""
        seen: dict[int, int] = {}
        for entry in _entries(self.folder):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since
            seen[status.st_ino] = max(status.st_size, _LEAST)
        return sum(seen.values())

    def full(self) -> bool:
        return self.used() > self.size_max

    def drop_expired(self, owner: str) -> None:
        now = time.time()
        for path in self.files(owner).glob(f"file-*{_KNOWN}"):
            if _read(path, now) is None and _read(path, 0.0) is not None:
                self.delete(owner, path.name.removesuffix(_KNOWN))

    def _made(self, owner: str, kind: str) -> Path:
        path = self.folder / owner / kind
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def _drop_forgotten(self) -> None:
        """Of uploads whose gateway died; a gateway that we replace may still be at one."""
        before = time.time() - _FORGOTTEN_S
        for path in self.folder.glob("*/files/file-*"):
            known = path.suffix == _KNOWN or path.with_name(f"{path.name}{_KNOWN}").exists()
            if not known and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)


def _read(path: Path, now: float) -> StoredFile | None:
    """None: not there, not whole, or expired."""
    try:
        found = StoredFile(**cast("dict[str, Any]", json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return None if found.expires_at is not None and now >= found.expires_at else found


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    yield from _entries(Path(entry.path))
                else:
                    yield entry
    except FileNotFoundError:
        return
