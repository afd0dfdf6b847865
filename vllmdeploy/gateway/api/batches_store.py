"""Batches of /v1/batches on disk: a folder for each, in which `batch.json` says how it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from vllmdeploy.batch.durable import replace_file
from vllmdeploy.gateway.api.files_store import FileStore

BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
FINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_RECORD = "batch.json"
_INPUT = "input.jsonl"
_OUTPUT = "output"
_CANCEL = "cancel"
_CREATED_WITHIN_S = 60.0
_STAMPS = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """`ends_as` is what a batch that is being finalized will be; `owner` is whose it is."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = "validating"
    ends_as: str = ""
    metadata: Mapping[str, str] | None = None
    stamps: Mapping[str, int] = field(default_factory=dict[str, int])
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def at(self, status: str, now: float, **changes: Any) -> Record:
        stamps = {**self.stamps, f"{status}_at": int(now)}
        return replace(self, status=status, stamps=stamps, **changes)

    def public(self) -> dict[str, object]:
        found: dict[str, object] = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id if self.is_final else None,
            "error_file_id": self.error_file_id if self.is_final else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{name: self.stamps.get(name) for name in _STAMPS},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }
        if self.error:
            problem = {"code": "batch_failed", "message": self.error, "line": None, "param": None}
            found["errors"] = {"object": "list", "data": [problem]}
        if self.is_final:
            found["usage"] = self._usage()
        return found

    def _usage(self) -> dict[str, object]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class BatchStore:
    """Whoever holds the lock of a batch's folder may write its record; anybody may read it."""

    def __init__(self, files: FileStore) -> None:
        self.files = files

    def folder(self, record: Record) -> Path:
        return self.files.batches(record.owner) / record.id

    def input(self, record: Record) -> Path:
        return self.folder(record) / _INPUT

    def output(self, record: Record) -> Path:
        return self.folder(record) / _OUTPUT

    def create(self, record: Record) -> None:
        """The input is linked to, so that deleting its file harms no batch that reads it."""
        folder = self.folder(record)
        folder.mkdir(mode=0o700)
        os.link(self.files.content(record.owner, record.input_file_id), folder / _INPUT)
        self.save(record)

    def save(self, record: Record) -> None:
        replace_file(self.folder(record) / _RECORD, json.dumps(asdict(record)).encode())

    def get(self, owner: str, id_: str) -> Record | None:
        if not BATCH_ID.fullmatch(id_):
            return None
        return _read(self.files.batches(owner) / id_)

    def all(self, owner: str) -> list[Record]:
        """The newest first."""
        found = [_read(path) for path in self.files.batches(owner).glob("batch_*")]
        known = [record for record in found if record is not None]
        return sorted(known, key=lambda one: (one.created_at, one.id), reverse=True)

    def unfinished(self) -> Iterator[Record]:
        """The oldest first, for each owner; one whose creation was cut off is taken away."""
        for owner in self.files.owners():
            for path in self.files.batches(owner).glob("batch_*"):
                if _abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)
            yield from (one for one in reversed(self.all(owner)) if not one.is_final)

    def ask_to_cancel(self, record: Record) -> None:
        """On the disk, because another gateway, or the next, may be the one that runs it."""
        (self.folder(record) / _CANCEL).touch()

    def asked_to_cancel(self, record: Record) -> bool:
        return (self.folder(record) / _CANCEL).exists()

    def clear(self, record: Record) -> None:
        """What a batch needed while it ran."""
        shutil.rmtree(self.output(record), ignore_errors=True)
        self.input(record).unlink(missing_ok=True)


def _abandoned(folder: Path) -> bool:
    """Not one that a gateway beside us is about to create."""
    try:
        old = folder.stat().st_mtime < time.time() - _CREATED_WITHIN_S
    except FileNotFoundError:
        return False
    return old and not (folder / _RECORD).exists()


def _read(folder: Path) -> Record | None:
    try:
        return Record(**cast("dict[str, Any]", json.loads((folder / _RECORD).read_bytes())))
    except (OSError, ValueError, TypeError):
        return None
