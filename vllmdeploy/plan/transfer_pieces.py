"""A model cut into what moves in one go: big files alone, small ones many together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vllmdeploy.plan.transfer import Piece
from vllmdeploy.tools.manifest import Manifest, ModelFile

# Below this, starting a transfer costs more than the transfer.
ALONE_BYTES = 8 * 1024 * 1024
_TOGETHER_BYTES = 32 * 1024 * 1024
_TOGETHER_FILES = 2000


def pieces_of(manifest: Manifest) -> tuple[Piece, ...]:
    """The same cut on every machine; biggest first, so that none is left for the end."""
    alone = [[file] for file in manifest.files if file.size >= ALONE_BYTES]
    small = sorted(file for file in manifest.files if file.size < ALONE_BYTES)
    groups = sorted((*alone, *_together(small)), key=lambda group: (-_size(group), group[0].path))
    return tuple(
        Piece(number, _size(group), tuple(file.path for file in group))
        for number, group in enumerate(groups)
    )


def _size(group: Sequence[ModelFile]) -> int:
    return sum(file.size for file in group)


def _together(files: Sequence[ModelFile]) -> list[list[ModelFile]]:
    groups: list[list[ModelFile]] = []
    for file in files:
        last = groups[-1] if groups else None
        full = last is None or (
            len(last) >= _TOGETHER_FILES or _size(last) + file.size > _TOGETHER_BYTES
        )
        if last is None or full:
            groups.append([file])
        else:
            last.append(file)
    return groups


def held(pieces: Sequence[Piece], good: Collection[str]) -> frozenset[int]:
    """The pieces of which every file is among the good ones."""
    return frozenset(piece.number for piece in pieces if all(path in good for path in piece.paths))
