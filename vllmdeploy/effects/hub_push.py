"""Brings files of this machine to a host through its shell, in pieces that fit in memory."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.core.command import Command, check, script
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.manifest import ModelFile

_PIECE = 8 * 2**20
_SMALL = 2**20
# Each holds one piece; an SSH connection has eight sessions.
_AT_ONCE = 4
_PIECE_LIMIT_S = 600.0

# $3 is where the piece begins: if that is not where the file ends, somebody else writes it too.
_APPEND = """
set -eu
umask 022
cd "$1"
case $2 in */*) mkdir -p "./${2%/*}";; esac
size=$(stat -c %s "./$2" 2>/dev/null || echo 0)
[ "$size" = "$3" ] || { echo "$2 has $size bytes, expected $3: is it written twice?" >&2; exit 1; }
cat >> "./$2"
"""
_UNPACK = 'umask 022; cd "$1" && tar -xf -'


@dataclass(frozen=True, slots=True)
class Target:
    """An incoming folder on a host, and how to act there."""

    shell: Shell
    access: Access
    folder: str


def push(
    source: Path,
    target: Target,
    files: Sequence[ModelFile],
    there: Mapping[str, int],
    on_bytes: Callable[[int], None],
) -> None:
    """`there` has the sizes of what came before: a file goes on where it ends."""
    missing = [file for file in files if there.get(file.path) != file.size]
    small = [file for file in missing if file.size <= _SMALL]
    large = sorted((f for f in missing if f.size > _SMALL), key=lambda file: -file.size)
    lock = threading.Lock()

    def moved(count: int) -> None:
        with lock:
            on_bytes(count)

    def one(unit: ModelFile | list[ModelFile]) -> None:
        if isinstance(unit, list):
            _send(target, _bundle(source, target, unit), moved, sum(file.size for file in unit))
        else:
            _append(source, target, unit, there.get(unit.path, 0), moved)

    units: list[ModelFile | list[ModelFile]] = [*large, *_bundles(small)]
    for answer in each(units, one, at_once=_AT_ONCE):
        if isinstance(answer, VllmdeployError):
            raise answer


def _append(
    source: Path, target: Target, file: ModelFile, start: int, moved: Callable[[int], None]
) -> None:
    with (source / file.path).open("rb") as content:
        content.seek(start)
        moved(start)
        while start < file.size:
            piece = content.read(min(_PIECE, file.size - start))
            if not piece:
                break  # shorter than it was: its hash on the host will say so
            command = script(
                _APPEND, target.folder, file.path, str(start), stdin=piece, root=True
            ).within(_PIECE_LIMIT_S)
            _send(target, command, moved, len(piece))
            start += len(piece)


def _bundles(files: Sequence[ModelFile]) -> list[list[ModelFile]]:
    bundles: list[list[ModelFile]] = []
    size = _PIECE
    for file in files:
        if size + file.size > _PIECE:
            bundles.append([])
            size = 0
        bundles[-1].append(file)
        size += file.size + 1024
    return bundles


def _bundle(source: Path, target: Target, files: Sequence[ModelFile]) -> Command:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            content = (source / file.path).read_bytes()
            entry = tarfile.TarInfo(file.path)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    command = script(_UNPACK, target.folder, stdin=packed.getvalue(), root=True)
    return command.within(_PIECE_LIMIT_S)


def _send(target: Target, command: Command, moved: Callable[[int], None], size: int) -> None:
    mine = target.access.of(command)
    check(target.shell.host, mine, target.shell.run(mine), doing="sending a part of the model")
    moved(size)
