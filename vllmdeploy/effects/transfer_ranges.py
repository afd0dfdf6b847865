"""One range of a file from one host to another, and a file put together from all of them."""

from __future__ import annotations

from vllmdeploy.core.command import Command, check
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
from vllmdeploy.tools import model_files, ranges, sync_keys
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.ranges import Range


class ShortSource(CommandFailed):
    """The source's file is not the one of the manifest: it ends before the range does."""


def range_of(piece: Piece, place: ModelPlace, limit_kib_s: int | None) -> Range:
    start = piece.start or 0
    return Range(
        place=place,
        number=piece.number,
        path=piece.paths[0],
        start=start,
        end=start + piece.size,
        limit_kib_s=limit_kib_s,
    )


def fetch(
    transfer: Transfer,
    source: Party,
    target: Party,
    freight: Freight,
    arrival: Arrival,
    lanes: Lanes,
) -> None:
    wanted = range_of(transfer.piece, freight.place_on(target), freight.limit_kib_s)
    if transfer.relayed:
        _relay(wanted, source, target, freight, arrival)
        return
    road = source.member.road
    if road is None:
        raise ValueError(f"{source.name} cannot be read from directly")

    def begin() -> Command:
        access, place = target.member.access, wanted.place
        connection = f"{source.name} {target.name} {transfer.stream} {place.incoming}"
        keys = sync_keys.keys(access.layout)
        limit = wanted.limit_kib_s
        return access.of(ranges.lane(place, road, keys, connection=connection, limit_kib_s=limit))

    result = lanes.bring(target.shell, source.name, begin, wanted, arrival.line)
    if result is None:
        return
    doing = f"fetching a part of {wanted.path} from {source.name}"
    if ranges.SHORT in result.output:
        text = f"{wanted.path} {ranges.SHORT}"
        raise ShortSource(source.name, "dd", result.status, text, doing=doing)
    checked(target, result, doing, shown="dd")
    raise CommandFailed(target.name, "dd", result.status, "it ended too early", doing=doing)


def _relay(wanted: Range, source: Party, target: Party, freight: Freight, arrival: Arrival) -> None:
    """Through this machine."""
    reach, asked = target.member.access, ranges.where(wanted)
    said = check(target.name, reach.of(asked), target.shell.run(reach.of(asked))).stdout.strip()
    start = int(said) if said.isdigit() else wanted.start
    if start >= wanted.end:
        return

    def moved(count: int) -> None:
        arrival.wire = count
        arrival.on_bytes(count)

    try:
        through(
            source.shell,
            source.member.access.of(ranges.give(freight.place_on(source), wanted, start)),
            target.shell,
            reach.of(ranges.take(wanted, start)),
            on_moved=moved,
            limit_bytes_s=wanted.limit_kib_s * 1024.0 if wanted.limit_kib_s else None,
        )
    except CommandFailed as error:
        if error.host == target.name and no_room(error.message):
            raise DiskFull(target.name, "dd", error.status, error.message) from error
        raise


def put_together(party: Party, piece: Piece, freight: Freight) -> bool:
    """Whether the file is what the manifest says, after all of its ranges have come."""
    path = piece.paths[0]
    command = party.member.access.of(ranges.put_together(freight.place_on(party), path, piece.size))
    doing = f"putting {path} together"
    said = check(party.name, command, party.shell.run(command), doing=doing)
    found = (model_files.parse_hash(line) for line in said.stdout.splitlines())
    hashes = {each[1] for each in found if each is not None}
    return hashes == {freight.manifest.by_path[path].sha256}
