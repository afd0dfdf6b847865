"""The folder in which the processes of one gateway meet; only its own user comes in."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

_PREFIX = "vllmdeploy-gateway-"
SOCKET = "parent"
# One that has just begun may have its socket, and not listen yet.
_YOUNG_S = 60.0


def make() -> Path:
    """What gateways that were killed left behind goes at the same time."""
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        if _is_ours(folder) and _is_abandoned(folder / SOCKET):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))


def _is_ours(folder: Path) -> bool:
    try:
        seen = folder.lstat()
    except OSError:
        return False
    return seen.st_uid == os.getuid() and time.time() - seen.st_mtime > _YOUNG_S


def _is_abandoned(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
