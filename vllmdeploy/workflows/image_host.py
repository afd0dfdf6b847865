"""What is done with an image on single hosts: taken apart on one, put together on the others."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from vllmdeploy.core.command import Command, Result, check
from vllmdeploy.core.reading import json_object
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.transfer_freight import DiskFull, Freight, Party
from vllmdeploy.effects.transfer_hosts import Prepared
from vllmdeploy.errors import CommandFailed, PreflightRefused
from vllmdeploy.plan.image_push import Standing, Wanted, layer_sizes, manifest, spared_pieces
from vllmdeploy.plan.transfer_pieces import Piece
from vllmdeploy.tools import files, image_archive, images, model_files, rsync
from vllmdeploy.tools.image_archive import Exported
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.workflows.sync_host import HostWork

_NO_ROOM = "no space left on device"


@dataclass(frozen=True, slots=True)
class Apart:
    """An image in pieces on its source."""

    exported: Exported
    manifest: Manifest

    @property
    def sizes(self) -> dict[str, int]:
        return {file.path: file.size for file in self.manifest.files}


def run(party: Party, command: Command, doing: str) -> Result:
    mine = party.member.access.of(command)
    return check(party.name, mine, party.shell.run(mine), doing=doing)


def take_apart(party: Party, wanted: Wanted) -> Apart:
    """Only what some host lacks; what an earlier push left is taken as it is."""
    access = party.member.access
    place = ModelPlace(access.layout.images, wanted.folder)
    run(party, image_archive.begin(place.root, access.user), "making room for an image's pieces")
    index = f"{place.incoming}/.vllmdeploy/INDEX.json"
    kept = _kept(party, index, wanted)
    if kept is not None:
        return kept
    command = image_archive.export(
        place.incoming,
        wanted.image.id,
        spared=wanted.spared,
        piece_bytes=wanted.piece_bytes,
        owner=access.user,
    )
    exported = image_archive.parse_export(run(party, command, "taking the image apart"))
    if exported.problem or exported.layers != wanted.image.layers:
        raise CommandFailed(
            party.name,
            f"docker save {wanted.image.short}",
            1,
            exported.problem or "it has other layers than the image had before",
        )
    arranged = run(
        party,
        image_archive.arrange(place.incoming, exported, tuple(wanted.lacked)),
        "sorting the image's pieces",
    )
    chosen = {image_archive.folder_of(layer) for layer in wanted.lacked}
    found = image_archive.parse_pieces(arranged)
    sizes = {path: size for path, size in found.items() if path.partition("/")[0] in chosen}
    hashes = _hashes(party, place.incoming, sizes)
    apart = Apart(exported, manifest(exported.digest, sizes, hashes))
    write = files.write(index, _index(apart))
    run(party, files.folders(f"{place.incoming}/.vllmdeploy"), "keeping what the pieces are")
    run(party, write, "keeping what the pieces are")
    return apart


def _hashes(party: Party, folder: str, sizes: Mapping[str, int]) -> dict[str, str]:
    command = model_files.hashes(folder, tuple(sizes), total=sum(sizes.values()))
    said = run(party, command, "computing the hashes of the image's pieces").stdout
    found = (model_files.parse_hash(line) for line in said.splitlines())
    return dict(one for one in found if one is not None)


def _index(apart: Apart) -> bytes:
    pieces = {file.path: [file.size, file.sha256] for file in apart.manifest.files}
    config = base64.b64encode(apart.exported.config).decode()
    return json.dumps({"config": config, "pieces": pieces}).encode() + b"\n"


def _kept(party: Party, index: str, wanted: Wanted) -> Apart | None:
    """What an earlier run took apart, if it has all that is needed now."""
    said = party.shell.run(party.member.access.of(files.read(index)))
    shown = json_object(said.stdout) if said.ok else None
    if shown is None:
        return None
    try:
        exported = Exported(base64.b64decode(shown["config"]))
        listed = cast("dict[str, Any]", shown["pieces"])
        sizes = {str(path): int(one[0]) for path, one in listed.items()}
        hashes = {str(path): str(one[1]) for path, one in listed.items()}
        layers = exported.layers
    except (KeyError, ValueError, TypeError, IndexError, AttributeError):
        return None
    if layers != wanted.image.layers or not wanted.lacked <= set(layer_sizes(layers, sizes)):
        return None
    return Apart(exported, manifest(exported.digest, sizes, hashes))


@dataclass(frozen=True, slots=True)
class ImageWork:
    """The two ends of a host's part in one push."""

    wanted: Wanted
    freight: Freight
    pieces: tuple[Piece, ...]
    apart: Apart

    def prepare(self, party: Party) -> Prepared:
        stand = self.wanted.stands[party.name]
        place = self.freight.place_on(party)
        needed = sum(layer_sizes(stand.lacks, self.apart.sizes).values())
        self._need_room(party, place, needed)
        run(
            party,
            image_archive.begin(place.root, party.member.access.user),
            "making room for an image's pieces",
        )
        run(party, rsync.sweep(place), "sweeping what another run left")
        found = HostWork(replace(self.freight, place=place), self.pieces).looked_through(party)
        spared = spared_pieces(self.pieces, stand.lacks)
        return replace(found, spared=spared - found.has)

    def _need_room(self, party: Party, place: ModelPlace, needed: int) -> None:
        command = party.member.access.of(image_archive.room(place.root))
        lacking = image_archive.parse_room(party.shell.run(command)).lacks(needed)
        if lacking:
            raise PreflightRefused(
                [f"{party.name}: {lacking}"],
                hint="make room there, or leave that host out with --to",
            )

    def finish(self, party: Party) -> None:
        """Docker takes it whole or not at all; the name comes last."""
        stand = self.wanted.stands[party.name]
        place = self.freight.place_on(party)
        sizes = layer_sizes(self.apart.exported.layers, self.apart.sizes)
        heads = image_archive.heads(self.apart.exported, sizes, stand.lacks)
        command = image_archive.load(place.incoming, stand.lacks, heads)
        mine = party.member.access.of(command)
        result = party.shell.run(mine)
        if _NO_ROOM in result.output.lower():
            raise DiskFull(
                party.name, "docker load", result.status, result.output, doing="loading the image"
            )
        check(party.name, mine, result, doing="loading the image")
        self._verify(party)

    def _verify(self, party: Party) -> None:
        """Docker's own store calls it by the digest of its configuration; in containerd's the
        layers and the way it runs have to be the same."""
        store = ask_one(party.shell, images.STORE, party.member.access)
        digest, image = self.apart.exported.digest, self.wanted.image
        found = next((one for one in store.images if one.id == digest), None) or store.same(image)
        if found is None or not found.same_as(replace(image, id=digest)):
            raise CommandFailed(
                party.name,
                "docker load",
                1,
                store.problem or f"there is no {digest} after it",
                doing="verifying the image",
            )
        give_name(party, self.wanted, found.id)


def give_name(party: Party, wanted: Wanted, image_id: str) -> None:
    if wanted.reference:
        run(party, images.tag(image_id, wanted.reference), "giving the image its name")


def unnamed(wanted: Wanted) -> tuple[str, ...]:
    return wanted.standing(Standing.UNNAMED)


def take_away(party: Party, wanted: Wanted) -> None:
    """Best effort: what stays is taken away by the next push."""
    place = ModelPlace(party.member.access.layout.images, wanted.folder)
    party.shell.run(party.member.access.of(image_archive.away(place.incoming)))
