"""One JSON line for each request: who, what, where it went, how long; never what was said."""

from __future__ import annotations

import asyncio
import json
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from vllmdeploy.gateway.visit import Visit

_FLUSH_S = 0.5
_HELD_MAX = 50_000


class AccessLog:
    """Lines are collected and written a few times a second, so that no request waits for a disk.

    When they cannot be written they are dropped and counted: an API must not stop for its log.
    """

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self.wanted = bool(path)
        self.dropped = 0
        self._loop = loop
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._file = _open(path) if path else None

    def write(self, visit: Visit, status: int, now: float, wall: float) -> None:
        exchange = visit.exchange
        line = {
            "at": round(wall, 3),
            "request": visit.id.decode(),
            "peer": exchange.peer,
            "key": visit.identity.name,
            "method": exchange.head.method,
            "route": visit.route,
            "model": visit.model,
            "instance": visit.instance,
            "status": status or 499,
            "ms": round((now - exchange.received_at) * 1000, 2),
            "queued_ms": round(visit.queued_s * 1000, 2),
            "first_byte_ms": _since(visit.first_byte_at, exchange.received_at),
            "tries": visit.tries,
            "bytes_in": len(exchange.body),
            "bytes_out": exchange.sent,
            "tokens": visit.tokens,
            "failure": visit.failure.value if visit.failure else "",
        }
        self._keep(line)

    def refused(self, peer: str, status: int, reason: str) -> None:
        if self.wanted:
            self._keep({"at": round(time.time(), 3), "peer": peer, "status": status, "why": reason})

    def flush(self) -> None:
        self._timer = None
        lines, self._lines = self._lines, []
        if self._file is None or not lines:
            return
        for piece in _pieces(lines):
            try:
                self._file.write("\n".join(piece) + "\n")
                self._file.flush()
            except OSError:
                self.dropped += len(piece)

    def _keep(self, line: Mapping[str, object]) -> None:
        if len(self._lines) >= _HELD_MAX:
            self.dropped += 1
            return
        self._lines.append(json.dumps(line))
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_S, self.flush)


def _pieces(lines: list[str]) -> list[list[str]]:
    """Several workers may write to one file or pipe: a piece this short is not torn apart."""
    pieces: list[list[str]] = []
    room = 0
    for line in lines:
        if len(line) >= room:
            pieces.append([])
            room = select.PIPE_BUF
        pieces[-1].append(line)
        room -= len(line) + 1
    return pieces


def _open(path: str) -> IO[str]:
    if path == "-":
        return sys.stdout
    return Path(path).open("a", encoding="utf-8")


def _since(at: float, began: float) -> float | None:
    return round((at - began) * 1000, 2) if at else None
