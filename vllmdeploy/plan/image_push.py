"""Which hosts an image goes to, which of its layers each of them lacks, and in which pieces."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from vllmdeploy.plan.transfer_pieces import Piece
from vllmdeploy.tools import image_archive
from vllmdeploy.tools.images import Image, Store
from vllmdeploy.tools.manifest import Manifest, ModelFile

_LEAST_PIECE, _MOST_PIECE = 8 * 1024 * 1024, 256 * 1024 * 1024
# Enough to keep a handful of hosts busy with each other, few enough to start them all quickly.
_PIECES = 48


class Standing(Enum):
    READY = "ready"
    UNNAMED = "there under another name"
    ABSENT = "not there"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """How one host stands to the image. `lacks`: the layers that have to come."""

    standing: Standing
    lacks: tuple[str, ...] = ()
    id: str = ""
    why: str = ""

    def cause(self, image: Image) -> str:
        if self.standing is Standing.ABSENT:
            return f"{len(self.lacks)} of {len(image.layers)} layers are not there"
        return self.why or str(self.standing.value)


def stand(store: Store, image: Image, reference: str, *, arch: str = "") -> Stand:
    """`reference` is the name it is to have there; without one its identity is enough."""
    if store.problem:
        return Stand(standing=Standing.REFUSED, why=store.problem)
    if arch and image.arch and arch != image.arch:
        why = f"the image is built for {image.arch}, the host is {arch}"
        return Stand(standing=Standing.REFUSED, why=why)
    same = store.same(image)
    if same is not None:
        named = not reference or reference in same.references
        return Stand(standing=Standing.READY if named else Standing.UNNAMED, id=same.id)
    return Stand(standing=Standing.ABSENT, lacks=lacking(store, image))


def lacking(store: Store, image: Image) -> tuple[str, ...]:
    """A layer can be left out only where all layers below it are there in the same order: that
    is how Docker's own store knows it."""
    if not store.shares_layers:
        return tuple(dict.fromkeys(image.layers))
    common = max((_common(image.layers, one.layers) for one in store.images), default=0)
    return tuple(dict.fromkeys(image.layers[common:]))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The image, where it comes from, and how every other host stands to it."""

    image: Image
    reference: str
    source: str
    stands: Mapping[str, Stand] = field(default_factory=dict[str, Stand])

    def standing(self, *which: Standing) -> tuple[str, ...]:
        return tuple(name for name, one in self.stands.items() if one.standing in which)

    @property
    def lacked(self) -> frozenset[str]:
        """What some host lacks: the rest need not leave the source's store."""
        return frozenset(layer for one in self.stands.values() for layer in one.lacks)

    @property
    def spared(self) -> tuple[str, ...]:
        return tuple(
            layer for layer in dict.fromkeys(self.image.layers) if layer not in self.lacked
        )

    @property
    def piece_bytes(self) -> int:
        """The same for one image on every run, so that what came once is known again."""
        size = _LEAST_PIECE
        while size < _MOST_PIECE and size * _PIECES < self.image.size:
            size *= 2
        return size

    @property
    def folder(self) -> str:
        mib = self.piece_bytes // (1024 * 1024)
        return f"image-{self.image.id.removeprefix('sha256:')[:32]}-{mib}"


def source_of(stores: Mapping[str, Store], reference: str, *, lead: str) -> str | None:
    """The head's word counts, if it has one; else the first host's that has the image."""
    ordered = sorted(stores, key=lambda name: name != lead)
    return next((name for name in ordered if stores[name].find(reference)), None)


def manifest(image_id: str, sizes: Mapping[str, int], hashes: Mapping[str, str]) -> Manifest:
    files = (ModelFile(path, size, hashes[path]) for path, size in sizes.items())
    return Manifest(source="folder", repo=image_id, files=tuple(sorted(files)))


def layer_sizes(layers: Collection[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """The bytes of these layers, all pieces together."""
    found: dict[str, int] = {}
    for layer in layers:
        folder = image_archive.folder_of(layer)
        parts = [size for path, size in sizes.items() if path.startswith(f"{folder}/")]
        if parts:
            found[layer] = sum(parts)
    return found


def spared_pieces(pieces: Sequence[Piece], lacks: Collection[str]) -> frozenset[int]:
    """Pieces of which a host needs no file."""
    needed = {image_archive.folder_of(layer) for layer in lacks}
    return frozenset(
        piece.number
        for piece in pieces
        if not any(path.partition("/")[0] in needed for path in piece.paths)
    )
