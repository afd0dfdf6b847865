"""A model cut into what moves in one go: ranges of big files, files, small ones many together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.tools.manifest import Manifest, ModelFile

# Small files move together until they are worth a transfer of their own, but in as many pieces as
# keep several hosts busy with each other.
_LEAST_BYTES, _MOST_BYTES = 1024 * 1024, 32 * 1024 * 1024
_PIECES = 64
_TOGETHER_FILES = 2000
# A file of two such ranges or more moves in ranges: a host sends on what it has of it, long before
# it has all. The smaller they are, the sooner every host has something to send on; each costs both
# ends a program or two.
_LEAST_RANGE, _RANGES = 8 * 1024 * 1024, 200
_ALIGNED = 1024 * 1024
# One stream leaves a line idle while the next one starts; two share it and never both start. Of
# ranges, which are small and begin at once, a third one takes what the other two leave.
_LANES, _LANES_OF_RANGES = 2, 3


@dataclass(frozen=True, slots=True)
class Piece:
    """What moves in one go: a file, many small ones, or the range of one that begins at `start`.
    `number` is its place, biggest first. A file that is `in_ranges` moves as a whole only where
    what was put together from them is not what it should be."""

    number: int
    size: int
    paths: tuple[str, ...] = ()
    start: int | None = None
    in_ranges: bool = False

    @property
    def bit(self) -> int:
        return 1 << self.number

    @property
    def called(self) -> str:
        return self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} small files"


@dataclass(frozen=True, slots=True)
class Transfer:
    """`relayed`: through the control machine, because these two cannot do it alone. `stream`: which
    of the connections between the two, of which each carries one transfer after another. `goes_on`:
    their last one was a range, and so is this one."""

    number: int
    piece: Piece
    source: str
    target: str
    since: float
    relayed: bool = False
    stream: int = 0
    goes_on: bool = False


def pieces_of(manifest: Manifest) -> tuple[Piece, ...]:
    """The same cut on every machine; biggest first, so that none is left for the end."""
    return tuple(
        Piece(number, _size(group), tuple(file.path for file in group))
        for number, group in enumerate(_groups(manifest))
    )


def with_ranges(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The same, with big files in ranges. Those of one file follow each other, so that files
    become whole one after another; the files themselves are the last numbers."""
    range_size = _aligned(max(_LEAST_RANGE, sum(piece.size for piece in pieces) // _RANGES))
    big = [p for p in pieces if len(p.paths) == 1 and p.size >= 2 * range_size]
    cut = [
        each for piece in pieces for each in (_cut(piece, range_size) if piece in big else [piece])
    ]
    whole = [Piece(0, piece.size, piece.paths, in_ranges=True) for piece in big]
    return tuple(replace(piece, number=number) for number, piece in enumerate((*cut, *whole)))


def lanes_for(pieces: Iterable[Piece]) -> int:
    """How many streams a host has at once in each direction."""
    in_ranges = any(piece.start is not None for piece in pieces)
    return _LANES_OF_RANGES if in_ranges else _LANES


def _cut(piece: Piece, range_size: int) -> list[Piece]:
    each = _aligned(piece.size // (piece.size // range_size))
    starts = range(0, piece.size, each)
    return [Piece(0, min(each, piece.size - at), piece.paths, start=at) for at in starts]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _groups(manifest: Manifest) -> list[list[ModelFile]]:
    enough = max(_LEAST_BYTES, min(_MOST_BYTES, manifest.total // _PIECES))
    alone = [[file] for file in manifest.files if file.size >= enough]
    small = sorted(file for file in manifest.files if file.size < enough)
    return sorted(
        (*alone, *_together(small, enough)), key=lambda group: (-_size(group), group[0].path)
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


def held(
    pieces: Sequence[Piece],
    good: Collection[str],
    came: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> frozenset[int]:
    """The pieces of which every file is among the good ones, or which lie in what `came`: begin
    and end of what is there of each file."""
    return frozenset(
        piece.number
        for piece in pieces
        if all(path in good for path in piece.paths) or _lies_in(piece, came or {})
    )


def _lies_in(piece: Piece, came: Mapping[str, Sequence[tuple[int, int]]]) -> bool:
    start = piece.start
    if start is None:
        return False
    found = came.get(piece.paths[0], ())
    return any(begin <= start and start + piece.size <= end for begin, end in found)
