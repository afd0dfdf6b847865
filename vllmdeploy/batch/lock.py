"""One runner for each output folder; the lock says who holds it and dies with its holder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from vllmdeploy.errors import Locked, UsageError

LOCK_NAME = "batch.lock"
# `holder` takes the lock for an instant to see whether it is free; a start must outlast that.
_TRIES = 5
_BETWEEN_TRIES_S = 0.02


@contextmanager
def hold(folder: Path) -> Generator[None]:
    path = folder / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot write here: {error.strerror}",
            hint="name a folder that can be written, with -o",
        ) from error
    try:
        if not _take(descriptor):
            raise Locked(
                f"{folder}: another run writes here: {_who(descriptor)}",
                hint="wait for it, stop it, or choose another folder with -o",
            )
        who = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> str | None:
    """Who runs here now, None for nobody."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _who(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _TRIES:
                time.sleep(_BETWEEN_TRIES_S)
        else:
            return True
    return False


def _who(descriptor: int) -> str:
    try:
        who = cast("dict[str, object]", json.loads(os.pread(descriptor, 4096, 0)))
        return f"pid {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has only just started"
