"""One piece from one host to another, verified where it arrived."""

from __future__ import annotations

from collections.abc import Mapping

from vllmdeploy.core.command import check
from vllmdeploy.effects import transfer_ranges
from vllmdeploy.effects.transfer_freight import (
    Arrival,
    DiskFull,
    Freight,
    Party,
    checked,
    no_room,
)
from vllmdeploy.effects.transfer_lanes import Lanes
from vllmdeploy.effects.transfer_pipe import through
from vllmdeploy.errors import CommandFailed
from vllmdeploy.plan.transfer_pieces import Piece, Transfer
from vllmdeploy.tools import model_files, rsync, sync_keys
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.manifest_names import ModelPlace


def fetch(
    transfer: Transfer,
    source: Party,
    target: Party,
    freight: Freight,
    arrival: Arrival,
    lanes: Lanes,
    *,
    resumes: bool,
    checksum: bool,
) -> tuple[str, ...]:
    """The files of the piece that are not what the manifest says, after it has come over. Of a
    range nothing is said before its file is whole."""
    if transfer.piece.start is not None:
        transfer_ranges.fetch(transfer, source, target, freight, arrival, lanes)
        return ()
    if transfer.relayed:
        _relay(transfer.piece, source, target, freight, arrival, anew=checksum)
    else:
        _pull(transfer, source, target, freight, arrival, resumes=resumes, checksum=checksum)
    return wrong(transfer.piece, freight.manifest, arrival.hashes)


def wrong(piece: Piece, manifest: Manifest, hashes: Mapping[str, str]) -> tuple[str, ...]:
    wanted = manifest.by_path
    return tuple(path for path in piece.paths if hashes.get(path) != wanted[path].sha256)


def _pull(
    transfer: Transfer,
    source: Party,
    target: Party,
    freight: Freight,
    arrival: Arrival,
    *,
    resumes: bool,
    checksum: bool,
) -> None:
    road = source.member.road
    if road is None:
        raise ValueError(f"{source.name} cannot be read from directly")
    piece, place = transfer.piece, freight.place_on(target)
    wanted = rsync.Pull(
        place=place,
        number=piece.number,
        paths=piece.paths,
        size=piece.size,
        resumes=resumes,
        checksum=checksum,
        limit_kib_s=freight.limit_kib_s,
        connection=f"{source.name} {target.name} {transfer.stream} {place.incoming}",
    )
    access = target.member.access
    command = access.of(rsync.pull(wanted, road, sync_keys.keys(access.layout)))
    result = target.shell.run(command, on_line=arrival.line)
    checked(target, result, f"fetching {piece.called} from {source.name}", shown="rsync")


def _relay(
    piece: Piece,
    source: Party,
    target: Party,
    freight: Freight,
    arrival: Arrival,
    *,
    anew: bool,
) -> None:
    """Through this machine: the rest of one file, or many files as one stream."""
    here, there = freight.place_on(source), freight.place_on(target)
    if len(piece.paths) == 1:
        path = piece.paths[0]
        offset = 0 if anew else _there(target, there, path, piece.size)
        give = rsync.send_file(here, path, offset)
        take = rsync.take_file(there, path, offset)
    else:
        offset = 0
        give, take = rsync.send_files(here, piece.paths), rsync.take_files(there)

    def moved(count: int) -> None:
        arrival.wire = count
        arrival.on_bytes(min(piece.size, offset + count))

    limit = freight.limit_kib_s * 1024.0 if freight.limit_kib_s else None
    try:
        through(
            source.shell,
            source.member.access.of(give),
            target.shell,
            target.member.access.of(take),
            on_moved=moved,
            limit_bytes_s=limit,
        )
    except CommandFailed as error:
        if no_room(error.message) and error.host == target.name:
            raise DiskFull(target.name, "cat", error.status, error.message) from error
        raise
    arrival.on_moved()
    hashed = target.member.access.of(
        model_files.hashes(there.incoming, piece.paths, total=piece.size)
    )
    said = target.shell.run(hashed, on_line=arrival.line)
    check(target.name, hashed, said, doing=f"verifying {piece.called}")


def _there(target: Party, place: ModelPlace, path: str, size: int) -> int:
    """Where to go on; what is longer than it should be is begun anew."""
    asked = target.member.access.of(rsync.size_of(place, path))
    said = check(target.name, asked, target.shell.run(asked)).stdout.strip()
    found = int(said) if said.isdigit() else 0
    return found if found < size else 0
