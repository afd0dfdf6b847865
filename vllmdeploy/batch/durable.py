"""File writes that survive a kill or a power cut, and the words for those that cannot be made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vllmdeploy.errors import EXIT_COMMAND, UsageError, VllmdeployError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class OutputStopped(VllmdeployError):
    """The output cannot be written any more; what is there is whole, and the next run goes on."""

    exit_code = EXIT_COMMAND


def stopped(path: Path, error: OSError) -> OutputStopped:
    hint = "free some space, then run the same command: it goes on where it stopped"
    if error.errno not in _FULL:
        hint = "see to the disk, then run the same command: it goes on where it stopped"
    return OutputStopped(f"{path}: cannot write: {error.strerror or error}", hint=hint)


def write_all(descriptor: int, data: bytes) -> None:
    """One write() where the file system takes it whole, which it does unless it is full."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Whoever reads `path` sees the old content or the new, never a piece."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.replace(path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise stopped(path, error) from error


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot make the output folder: {error.strerror}",
            hint="name a folder that can be written, with -o",
        ) from error
