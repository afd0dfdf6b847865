"""What is distributed among which hosts, what comes of one piece, and what a failed one says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from vllmdeploy.core.command import Result
from vllmdeploy.effects.shell import Shell, Streaming
from vllmdeploy.errors import CommandFailed, VllmdeployError
from vllmdeploy.plan.transfer_keys import Member
from vllmdeploy.tools import model_files, ranges, rsync
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
        came = ranges.progress(line)
        if came is not None:
            self.wire = came
            self.on_bytes(came)
            return
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


def no_room(text: str) -> bool:
    return any(words in text for words in _NO_ROOM)


def checked(target: Party, result: Result, doing: str, *, shown: str) -> None:
    """The command's own line is long and always the same: what rsync said last is what counts."""
    if result.ok:
        return
    kind = DiskFull if no_room(result.output) else CommandFailed
    raise kind(target.name, shown, result.status, _telling(result), doing=doing)


def _telling(result: Result) -> str:
    """rsync ends with what followed from the first problem, which ssh or the other end told."""
    lines = (result.stderr if result.stderr.strip() else result.stdout).splitlines()
    own = [line for line in lines if line.strip() and not line.startswith("rsync error")]
    causes = [line for line in own if not any(words in line for words in _CONSEQUENCES)]
    return next(iter([*causes[-1:], *own[-1:], *lines[-1:]]), "")


def is_final(error: VllmdeployError) -> bool:
    """No other source and no later try makes it better."""
    return isinstance(error, DiskFull)
