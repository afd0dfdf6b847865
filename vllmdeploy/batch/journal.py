"""The two output files as journals: a line is there whole or not at all, and never twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vllmdeploy.batch.compact import DoneSet
from vllmdeploy.batch.durable import stopped, sync_folder, write_all
from vllmdeploy.batch.entries import OK, Head, read_head
from vllmdeploy.errors import UsageError

RESULTS = "results.jsonl"
ERRORS = "errors.jsonl"
_PART = ".part"
_RESTORE = "put back the file as it was, or begin again with --restart"


class Stored(NamedTuple):
    """One line of a journal: its head, and where its bytes lie."""

    head: Head
    offset: int
    size: int


class JournalFile:
    """Written as NAME.part, called NAME when every row is in."""

    def __init__(self, folder: Path, name: str) -> None:
        self.final = folder / name
        self.part = folder / f"{name}{_PART}"
        self._descriptor = -1
        self._end = 0

    @property
    def path(self) -> Path:
        return self.final if self.final.exists() else self.part

    def exists(self) -> bool:
        return self.final.exists() or self.part.exists()

    def remove(self) -> None:
        self.close()
        self.part.unlink(missing_ok=True)
        self.final.unlink(missing_ok=True)

    def stored(self) -> Iterator[Stored]:
        """Every whole line, in the order of the file; a torn end is left out, not yet cut."""
        self._end = 0
        if not self.exists():
            return
        with self.path.open("rb") as file:
            while raw := file.readline():
                head = read_head(raw[:-1]) if raw.endswith(b"\n") else None
                if head is None:
                    self._check_torn(raw, file)
                    return
                yield Stored(head, self._end, len(raw))
                self._end += len(raw)

    def _check_torn(self, raw: bytes, file: BinaryIO) -> None:
        """A kill leaves a piece of one line at the end, a power cut zeros; all else is an edit."""
        if raw.endswith(b"\n") and b"\0" not in raw and file.readline():
            raise UsageError(
                f"{self.path}: the line at byte {self._end} was not written by a batch run",
                hint=_RESTORE,
            )

    def begin(self) -> None:
        """Opens for appending behind the last whole line; `stored` must have been read before."""
        try:
            if self.final.exists():
                self.final.replace(self.part)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.part, flags, 0o644)
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
            sync_folder(self.part.parent)
        except OSError as error:
            raise stopped(self.part, error) from error

    def append(self, line: bytes) -> None:
        try:
            write_all(self._descriptor, line)
        except OSError as error:
            self._cut_piece()
            raise stopped(self.part, error) from error
        self._end += len(line)

    def _cut_piece(self) -> None:
        """Nothing may be written behind a piece of a line: if it cannot be taken away, nobody
        writes here any more, and the next run cuts it."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError:
            self.close()

    def clear(self) -> None:
        self._end = 0
        try:
            os.ftruncate(self._descriptor, 0)
            os.fsync(self._descriptor)
        except OSError as error:
            raise stopped(self.part, error) from error

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise stopped(self.part, error) from error

    def finish(self) -> None:
        self.close()
        if self.part.exists():
            self.part.replace(self.final)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Journal:
    """Both files and which rows they hold. Its caller holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = JournalFile(folder, RESULTS)
        self.errors = JournalFile(folder, ERRORS)
        self.done = DoneSet()
        self.ok = 0
        self.failed = 0
        self._unsynced = 0

    def exists(self) -> bool:
        return self.results.exists() or self.errors.exists()

    def restart(self) -> None:
        self.results.remove()
        self.errors.remove()

    def load(self) -> Iterator[Stored]:
        """Reads what earlier runs finished; each line is yielded for those who count."""
        for file in (self.results, self.errors):
            for stored in file.stored():
                self._note(stored.head, file)
                yield stored

    def _note(self, head: Head, file: JournalFile) -> None:
        if not self.done.add(head.line):
            raise UsageError(f"{file.path}: row {head.line} is there twice", hint=_RESTORE)
        if head.kind == OK:
            self.ok += 1
        else:
            self.failed += 1

    def begin(self) -> None:
        self.results.begin()
        self.errors.begin()

    def drop_errors(self) -> None:
        """Forgets every error row, so that this run does them again."""
        for stored in self.errors.stored():
            self.done.discard(stored.head.line)
        self.errors.clear()
        self.failed = 0

    def append(self, line: int, kind: str, entry: bytes) -> None:
        if not self.done.add(line):
            raise AssertionError(f"row {line} was finished twice")
        if kind == OK:
            self.results.append(entry)
            self.ok += 1
        else:
            self.errors.append(entry)
            self.failed += 1
        self._unsynced += 1

    @property
    def unsynced(self) -> int:
        return self._unsynced

    def sync(self) -> None:
        self._unsynced = 0
        self.results.sync()
        self.errors.sync()

    def finish(self) -> None:
        """Gives both files their names; the results come last, so their name means finished."""
        try:
            self.errors.finish()
            self.results.finish()
            sync_folder(self.folder)
        except OSError as error:
            raise stopped(self.folder, error) from error

    def close(self) -> None:
        self.results.close()
        self.errors.close()


def verify(folder: Path, lines: int) -> Iterator[Stored]:
    """Reads both files again: every row 1..lines in exactly one place, or this is a bug."""
    journal = Journal(folder)
    yield from journal.load()
    if len(journal.done) != lines:
        raise AssertionError(
            f"{folder}: {len(journal.done)} rows are in the output, {lines} in the input"
        )
