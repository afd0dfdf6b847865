"""A file on its way from a client to the disk: written in a thread while more of it comes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from vllmdeploy.batch.durable import write_all
from vllmdeploy.gateway.api.files_multipart import BadForm, Form, Part
from vllmdeploy.gateway.api.files_store import BATCH, FileStore, StoredFile, new_id
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.wire.faults import Malformed
from vllmdeploy.wire.limits import MIB

FILE_MAX = 1024 * MIB
FORM_MAX = FILE_MAX + MIB
_AHEAD = 4 * MIB  # may wait for the disk before the client is not read any more
_LOOK_EVERY = 4 * MIB
_FIELD_MAX = 1024
_NAME_MAX = 255
_EXPIRES_MIN, _EXPIRES_MAX = 3600, 2_592_000


class Upload:
    """A `Sink` for one form; `finish` gives the file once all of it is on the disk."""

    def __init__(self, store: FileStore, owner: str, boundary: bytes) -> None:
        self.size = 0
        self.flow: Callable[[bool], None] | None = None
        self._store = store
        self._owner = owner
        self._form = Form(boundary)
        self._loop = asyncio.get_running_loop()
        self._fields: dict[str, bytes] = {}
        self._field = ""
        self._filename: str | None = None
        self._waiting: list[bytes] = []
        self._ahead = 0
        self._held = False
        self._job: asyncio.Future[None] | None = None
        self._failure: Refusal | None = None
        self._path: Path | None = None
        self._descriptor = -1
        self._written = self._next_look = 0
        self._over = False

    # what the connection calls

    def take(self, piece: bytes) -> None:
        if self._failure is not None:
            raise Malformed(self._failure.message, self._failure.status)
        self.size += len(piece)
        if self.size > FILE_MAX:
            raise Malformed(f"a file may have {FILE_MAX} bytes", 413)
        try:
            for event in self._form.feed(piece):
                if isinstance(event, Part):
                    self._begin(event)
                else:
                    self._more(event)
        except BadForm as error:
            raise Malformed(str(error)) from error

    def abandon(self) -> None:
        if not self._over:
            self._over = True
            self._waiting.clear()
            if self._job is None:
                self._loop.run_in_executor(None, self._remove)

    # the form

    def _begin(self, part: Part) -> None:
        self._field = part.name
        if part.name != "file":
            self._fields[part.name] = b""
        elif self._filename is not None:
            raise BadForm("the form has two files")
        else:
            self._filename = (part.filename or "file")[:_NAME_MAX]
            self._work()

    def _more(self, data: bytes) -> None:
        if self._field == "file":
            self._waiting.append(data)
            self._ahead += len(data)
            self._work()
            return
        self._fields[self._field] += data
        if len(self._fields[self._field]) > _FIELD_MAX:
            raise BadForm(f"the field {self._field[:40]} is too long")

    # the disk

    def _work(self) -> None:
        if self._job is None:
            data, self._waiting, self._ahead = b"".join(self._waiting), [], 0
            self._job = self._loop.run_in_executor(None, self._write, data)
            self._job.add_done_callback(self._wrote)
        elif self._ahead > _AHEAD and not self._held:
            self._hold(paused=True)

    def _wrote(self, job: asyncio.Future[None]) -> None:
        self._job = None
        error = job.exception()
        if error is not None:
            self._failure = _no_room(error)
            self._waiting.clear()
            self._ahead = 0
        if self._over:
            self._loop.run_in_executor(None, self._remove)
        elif self._waiting:
            self._work()
        if self._held and self._ahead <= _AHEAD:
            self._hold(paused=False)

    def _hold(self, *, paused: bool) -> None:
        self._held = paused
        if self.flow is not None:
            self.flow(paused)

    def _write(self, data: bytes) -> None:
        if self._path is None:
            self._store.drop_expired(self._owner)
            self._path = self._store.coming(self._owner)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        write_all(self._descriptor, data)
        self._written += len(data)
        if self._written >= self._next_look:
            self._next_look = self._written + _LOOK_EVERY
            if self._store.full():
                raise _Full

    def _remove(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    # the end

    async def finish(self) -> StoredFile:
        """The body is whole; raises a Refusal for a form that is no file of a batch."""
        try:
            self._form.end()
            expires_at = self._expires_at()
            self._check_fields()
            while self._job is not None:
                await asyncio.wait([self._job])
            if self._failure is not None:
                raise self._failure
        except BadForm as error:
            self.abandon()
            raise Refusal(400, str(error)) from error
        except BaseException:
            self.abandon()
            raise
        self._over = True
        return await self._loop.run_in_executor(None, self._keep, expires_at)

    def _check_fields(self) -> None:
        if self._filename is None:
            raise BadForm("the form has no `file`")
        purpose = self._fields.get("purpose", b"").decode("utf-8", "replace")
        if purpose != BATCH:
            raise BadForm(f"purpose must be {BATCH!r}, not {purpose[:40]!r}")

    def _expires_at(self) -> int | None:
        """`expires_after` as the SDK writes it into a form."""
        seconds = self._fields.get("expires_after[seconds]")
        if seconds is None:
            return None
        if self._fields.get("expires_after[anchor]") != b"created_at":
            raise BadForm("expires_after[anchor] must be created_at")
        if not seconds.isdigit() or not _EXPIRES_MIN <= int(seconds) <= _EXPIRES_MAX:
            raise BadForm(f"expires_after[seconds] must be from {_EXPIRES_MIN} to {_EXPIRES_MAX}")
        return int(time.time()) + int(seconds)

    def _keep(self, expires_at: int | None) -> StoredFile:
        if self._path is None:
            raise RuntimeError("a file was kept before it was written")
        try:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            known = StoredFile(
                new_id("file-"),
                self._written,
                int(time.time()),
                self._filename or "",
                BATCH,
                expires_at,
            )
            return self._store.add(self._owner, self._path, known)
        except Exception as error:
            raise _no_room(error) from error
        finally:
            self._remove()


class _Full(Exception):
    """The folder holds as much as it may."""


def _no_room(error: BaseException) -> Refusal:
    if isinstance(error, _Full):
        message = "the gateway's room for files is full: delete some, or raise API_FILES_SIZE"
        return Refusal(507, message, code="files_full")
    return Refusal(507, f"the file cannot be written: {error}", code="files_full")
