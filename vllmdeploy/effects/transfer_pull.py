"""One piece from one host to another, verified where it arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from vllmdeploy.core.command import Result, check
from vllmdeploy.effects.shell import Shell, Streaming
from vllmdeploy.effects.transfer_pipe import through
from vllmdeploy.errors import CommandFailed, VllmdeployError
from vllmdeploy.plan.transfer_keys import Member
from vllmdeploy.plan.transfer_pieces import Piece, Transfer
from vllmdeploy.tools import model_files, rsync, sync_keys
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.manifest_names import ModelPlace

_CONSEQUENCES = ("connection unexpectedly closed", "safe_write failed", "safe_read failed")
_NO_ROOM = ("No space left on device", "Disk quota exceeded")


class HostShell(Shell, Streaming, Protocol):
    """What every host is spoken to through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A host in a distribution, with the way to it. `root`: where it keeps what comes, if not
    where all others do."""

    member: Member
    shell: HostShell
    root: str = ""

    @property
    def name(self) -> str:
        return self.member.host.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Freight:
    """What is distributed, and how fast a single stream may be. `mend`: what helps where nobody
    has it as the manifest says."""

    place: ModelPlace
    manifest: Manifest
    limit_kib_s: int | None = None
    mend: str = ""

    def place_on(self, party: Party) -> ModelPlace:
        return replace(self.place, root=party.root) if party.root else self.place


@dataclass(slots=True)
class Arrival:
    """What is known of a piece on its way. `wire` is what came over the network for it."""

    on_bytes: Callable[[int], None]
    on_moved: Callable[[], None]
    wire: int = 0
    hashes: dict[str, str] = field(default_factory=dict[str, str])

    def line(self, line: str) -> None:
        bytes_over = rsync.progress(line)
        if bytes_over is not None:
            self.on_bytes(bytes_over)
            return
        received = rsync.received(line)
        if received is not None:
            self.wire = received
        elif line == rsync.MOVED:
            self.on_moved()
        else:
            found = model_files.parse_hash(line)
            if found is not None:
                self.hashes[found[0]] = found[1]


class DiskFull(CommandFailed):
    """No other source helps: this host cannot take it."""


def fetch(
    transfer: Transfer,
    source: Party,
    target: Party,
    freight: Freight,
    arrival: Arrival,
    *,
    resumes: bool,
    checksum: bool,
) -> tuple[str, ...]:
    """The files of the piece that are not what the manifest says, after it has come over."""
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
    _checked(target, result, f"fetching {_called(piece)} from {source.name}", str(command))


def _checked(target: Party, result: Result, doing: str, command: str) -> None:
    """The command's own line is long and always the same: what rsync said last is what counts."""
    if result.ok:
        return
    kind = DiskFull if any(words in result.output for words in _NO_ROOM) else CommandFailed
    shown = "rsync" if "rsync" in command else "tar"
    raise kind(target.name, shown, result.status, _telling(result), doing=doing)


def _telling(result: Result) -> str:
    """rsync ends with what followed from the first problem, which ssh or the other end told."""
    lines = (result.stderr if result.stderr.strip() else result.stdout).splitlines()
    own = [line for line in lines if line.strip() and not line.startswith("rsync error")]
    causes = [line for line in own if not any(words in line for words in _CONSEQUENCES)]
    return next(iter([*causes[-1:], *own[-1:], *lines[-1:]]), "")


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
        full = any(words in error.message for words in _NO_ROOM)
        if full and error.host == target.name:
            raise DiskFull(target.name, "cat", error.status, error.message) from error
        raise
    arrival.on_moved()
    hashed = target.member.access.of(
        model_files.hashes(there.incoming, piece.paths, total=piece.size)
    )
    said = target.shell.run(hashed, on_line=arrival.line)
    check(target.name, hashed, said, doing=f"verifying {_called(piece)}")


def _there(target: Party, place: ModelPlace, path: str, size: int) -> int:
    """Where to go on; what is longer than it should be is begun anew."""
    asked = target.member.access.of(rsync.size_of(place, path))
    said = check(target.name, asked, target.shell.run(asked)).stdout.strip()
    found = int(said) if said.isdigit() else 0
    return found if found < size else 0


def _called(piece: Piece) -> str:
    return piece.paths[0] if len(piece.paths) == 1 else f"{len(piece.paths)} small files"


def is_final(error: VllmdeployError) -> bool:
    """No other source and no later try makes it better."""
    return isinstance(error, DiskFull)
