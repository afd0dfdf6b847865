"""Input lines: read one at a time with bounded memory, counted and digested once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vllmdeploy.errors import UsageError

MAX_LINE_BYTES = 16 << 20  # a prompt of a million tokens is about 5 MiB
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """`raw` is without its end; None stands for a line longer than was allowed."""

    number: int
    raw: bytes | None
    size: int


class Survey(NamedTuple):
    """What was in the input when the run began; `stamp` tells cheaply whether it still is."""

    lines: int
    size: int
    sha256: str
    stamp: tuple[int, int]


def open_input(path: Path) -> BinaryIO:
    """The same open file serves the survey and the rows, so a replaced path cannot mix two."""
    try:
        file = path.open("rb")
        regular = path.is_file()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read the input: {error.strerror}", hint="name a JSONL file"
        ) from error
    if not regular:
        file.close()
        raise UsageError(
            f"{path}: the input must be a regular file: it is read twice",
            hint="write the stream to a file first",
        )
    return file


def survey(file: BinaryIO) -> Survey:
    file.seek(0)
    digest = hashlib.sha256()
    lines = size = 0
    last = b"\n"
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        lines += chunk.count(b"\n")
        size += len(chunk)
        last = chunk[-1:]
    return Survey(lines + (last != b"\n"), size, digest.hexdigest(), stamp(file))


def stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def read_lines(file: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Splits on the newline byte only: JSON may hold a bare CR, U+2028 or U+0085."""
    file.seek(0)
    number = 0
    while raw := file.readline(limit + 1):
        number += 1
        size = len(raw)
        if raw.endswith(b"\n"):
            raw = raw[:-1]
        elif size > limit:
            yield Line(number, None, size + _skip_line(file))
            continue
        if number == 1 and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
        yield Line(number, raw, size)


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while piece := file.readline(_CHUNK):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
