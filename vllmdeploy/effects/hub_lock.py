"""One download of a model at a time on one machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vllmdeploy.errors import Locked


@contextmanager
def alone(path: Path, what: str) -> Generator[None]:
    """The lock goes when this process does, however it ends; the empty file may stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(
                f"{what} is being downloaded by another run on this machine", hint="wait for it"
            ) from error
        yield
    finally:
        os.close(descriptor)
