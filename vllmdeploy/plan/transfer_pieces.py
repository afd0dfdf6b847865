"""A model cut into what moves in one go: big files alone, small ones many together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vllmdeploy.tools.manifest import Manifest, ModelFile

# Small files move together until they are worth a transfer of their own, but in as many pieces as
# keep several hosts busy with each other.
_LEAST_BYTES, _MOST_BYTES = 1024 * 1024, 32 * 1024 * 1024
_PIECES = 64
_TOGETHER_FILES = 2000


@dataclass(frozen=True, slots=True)
class Piece:
    """What moves in one go: a file, or many small ones. `number` is its place, biggest first."""

    number: int
    size: int
    paths: tuple[str, ...] = ()

    @property
    def bit(self) -> int:
        return 1 << self.number


@dataclass(frozen=True, slots=True)
class Transfer:
    """`relayed`: through the control machine, because these two cannot do it alone. `stream`: which
    of the connections between the two, of which each carries one transfer after another."""

    number: int
    piece: Piece
    source: str
    target: str
    since: float
    relayed: bool = False
    stream: int = 0


def pieces_of(manifest: Manifest) -> tuple[Piece, ...]:
    """The same cut on every machine; biggest first, so that none is left for the end."""
    enough = max(_LEAST_BYTES, min(_MOST_BYTES, manifest.total // _PIECES))
    alone = [[file] for file in manifest.files if file.size >= enough]
    small = sorted(file for file in manifest.files if file.size < enough)
    groups = sorted(
        (*alone, *_together(small, enough)), key=lambda group: (-_size(group), group[0].path)
    )
    return tuple(
        Piece(number, _size(group), tuple(file.path for file in group))
        for number, group in enumerate(groups)
    )


def _size(group: Sequence[ModelFile]) -> int:
    return sum(file.size for file in group)


def _together(files: Sequence[ModelFile], enough: int) -> list[list[ModelFile]]:
    groups: list[list[ModelFile]] = []
    for file in files:
        last = groups[-1] if groups else None
        full = last is None or (len(last) >= _TOGETHER_FILES or _size(last) + file.size > enough)
        if last is None or full:
            groups.append([file])
        else:
            last.append(file)
    return groups


def held(pieces: Sequence[Piece], good: Collection[str]) -> frozenset[int]:
    """The pieces of which every file is among the good ones."""
    return frozenset(piece.number for piece in pieces if all(path in good for path in piece.paths))
