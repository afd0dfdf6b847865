"""Hashes of files of this machine, read once and in pieces."""

from __future__ import annotations

from pathlib import Path

from vllmdeploy.tools.hub import FileHashes, Hasher

_PIECE = 4 * 2**20


def hashes_of(path: Path) -> FileHashes:
    """hashlib gives up Python's lock for pieces of this size, so threads hash side by side."""
    with path.open("rb", buffering=0) as file:
        hasher = Hasher(path.stat().st_size)
        buffer = memoryview(bytearray(_PIECE))
        while count := file.readinto(buffer):
            hasher.feed(buffer[:count])
    return hasher.result()
