"""What a warden tells the world: its status document, written by rename and read by anyone."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vllmdeploy.node import processes

STATUS_FILE = "status.json"
SOCKET_FILE = "ctl.sock"
LOCK_FILE = "warden.lock"
FORMAT = 1
_UNIX_PATH_LIMIT = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What stays the same for as long as one warden lives."""

    name: str
    node: str
    role: str
    logs: str
    socket: str
    pid: int
    pid_started: int
    boot_id: str
    started_at: float


def socket_path(run: Path) -> Path:
    """In the run folder; under /tmp where that would be longer than a Unix address can be."""
    wanted = run / SOCKET_FILE
    if len(os.fsencode(wanted)) <= _UNIX_PATH_LIMIT:
        return wanted
    return Path(tempfile.gettempdir()) / short_folder(os.getpid()) / SOCKET_FILE


def short_folder(pid: int) -> str:
    own = processes.process(pid)
    return f"vllmdeploy-{pid}-{own.started if own else 0}"


def write(run: Path, document: object) -> None:
    """Whoever reads sees the old document or the new one, never half of one."""
    temporary = run / f".{STATUS_FILE}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        temporary.replace(run / STATUS_FILE)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read(run: Path) -> dict[str, object] | None:
    """The last document of this run folder; None where there is none that can be read."""
    try:
        loaded: object = json.loads((run / STATUS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return cast("dict[str, object]", loaded) if isinstance(loaded, dict) else None


def alive(document: dict[str, object]) -> bool:
    """Whether the warden that wrote it still runs: same boot, same pid, same start."""
    pid = document.get("pid")
    found = processes.process(pid) if isinstance(pid, int) else None
    return (
        found is not None
        and not found.dead
        and found.started == document.get("pid_started")
        and processes.boot_id() == document.get("boot_id")
    )
