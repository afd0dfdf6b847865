"""What a build is given, as a tar that is never kept in memory as a whole."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Generator, Mapping
from pathlib import Path

from vllmdeploy.effects.shell import Feed
from vllmdeploy.errors import UsageError

_CHUNK = 256 * 1024
_BLOCK = 512


def wheels_in(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise UsageError(f"--wheels {folder}: no such folder")
    found = tuple(sorted(folder.glob("*.whl")))
    if not found:
        raise UsageError(f"--wheels {folder}: it holds no .whl files")
    return found


def feed(small: Mapping[str, bytes], files: Mapping[str, Path]) -> Feed:
    """Gives the tar piece by piece, and nothing at its end."""
    pieces = _tar(small, files)

    def more() -> bytes | None:
        return next(pieces, b"")

    return more


def _tar(small: Mapping[str, bytes], files: Mapping[str, Path]) -> Generator[bytes]:
    for name, content in small.items():
        yield from _entry(name, len(content), io.BytesIO(content))
    for name, path in files.items():
        with path.open("rb") as opened:
            yield from _entry(name, path.stat().st_size, opened)
    yield bytes(2 * _BLOCK)


def _entry(name: str, size: int, content: io.BufferedIOBase) -> Generator[bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    yield entry.tobuf(format=tarfile.GNU_FORMAT)
    left = size
    while left:
        piece = content.read(min(_CHUNK, left))
        if not piece:
            raise UsageError(f"{name} became shorter while it was read")
        left -= len(piece)
        yield piece
    if size % _BLOCK:
        yield bytes(-size % _BLOCK)
