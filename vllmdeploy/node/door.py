"""The warden's Unix socket: one JSON line asked, one JSON document answered."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

from vllmdeploy.node import report

_ASK_LIMIT_S = 5.0
Answerer = Callable[[dict[str, object]], object]


def listen(path: Path) -> socket.socket:
    """A socket only its owner can open; a stale one of a dead warden is replaced."""
    # A folder somebody else made under /tmp first would let them swap the socket: it must be new.
    path.parent.mkdir(mode=0o700, exist_ok=path.parent.name != report.short_folder(os.getpid()))
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    return listener


def remove(path: str) -> None:
    """With the private folder that a long run path made necessary."""
    Path(path).unlink(missing_ok=True)
    if Path(path).parent.name == report.short_folder(os.getpid()):
        Path(path).parent.rmdir()


async def serve(listener: socket.socket, answer: Answerer) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _ASK_LIMIT_S)
            writer.write(json.dumps(_answer(line, answer)).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, asyncio.TimeoutError):
            pass  # whoever asked has gone or never asked
        finally:
            writer.close()

    return await asyncio.start_unix_server(talk, sock=listener)


def _answer(line: bytes, answer: Answerer) -> object:
    try:
        asked: object = json.loads(line)
    except ValueError:
        return {"error": "not a JSON line"}
    if not isinstance(asked, dict):
        return {"error": "not a JSON object"}
    return answer(cast("dict[str, object]", asked))
