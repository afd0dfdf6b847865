"""Rows of a batch asked of the gateway itself: as requests of its owner, by the usual way in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, cast

from vllmdeploy.batch.answers import Reply
from vllmdeploy.batch.transport import CallFailed
from vllmdeploy.routing.upstream import Address
from vllmdeploy.wire.exchange import Exchange
from vllmdeploy.wire.head import RequestHead

# Answers a request to the gateway: the exchange, and the owner of the batch.
Enter = Callable[[Exchange, str], Coroutine[Any, Any, None]]

HERE = Address("gateway", 0)
_PEER = "batch"
# Those who wait for an answer go first; a row's own wish counts for nothing here.
_FIELDS = {b"content-type": b"application/json", b"x-priority": b"1000"}
_RETRY_AFTER = re.compile(rb"\r\nretry-after: ([0-9]{1,6})\r\n")
# Codes of refusals that say that no engine has seen the request: see dispatch.
_NEVER_SENT = frozenset({"refused", "connect_timeout"})


class _Kept:
    """A wire that leads to nobody: it keeps what is sent."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.aborted = False

    def send(self, data: bytes) -> None:
        self.pieces.append(data)

    def keeps(self) -> bool:
        return False

    def finished(self) -> None:
        """Nobody waits for the next request."""

    def abort(self) -> None:
        self.aborted = True


class GatewayCalls:
    """The transport of a batch that runs in a thread: its rows cross over to the gateway's loop."""

    def __init__(self, enter: Enter, owner: str, loop: asyncio.AbstractEventLoop) -> None:
        self._enter = enter
        self._owner = owner
        self._loop = loop

    async def post(self, to: Address, path: str, body: bytes) -> Reply:
        return await self._cross("POST", path, body)

    async def get(self, to: Address, path: str) -> Reply:
        return await self._cross("GET", path, b"")

    async def close(self) -> None:
        """There is nothing of its own to close."""

    async def _cross(self, method: str, path: str, body: bytes) -> Reply:
        asking = asyncio.run_coroutine_threadsafe(self._ask(method, path, body), self._loop)
        return await asyncio.wrap_future(asking)

    async def _ask(self, method: str, path: str, body: bytes) -> Reply:
        # Of HTTP/1.0, so that an answer of unknown length comes without chunks.
        head = RequestHead(method, path, "", _FIELDS, len(body), keep_alive=False, minor=0)
        kept = _Kept()
        exchange = Exchange(kept, head, _PEER, monotonic())
        exchange.body = body
        await self._enter(exchange, self._owner)
        if kept.aborted:
            raise CallFailed("the answer was cut off", sent=True)
        written, _, answer = b"".join(kept.pieces).partition(b"\r\n\r\n")
        if exchange.status in (502, 504) and _code(answer) in _NEVER_SENT:
            raise CallFailed(_message(answer), sent=False)
        found = _RETRY_AFTER.search(written + b"\r\n")
        return Reply(exchange.status, found[1].decode() if found else "", answer)


def _error(answer: bytes) -> dict[str, object]:
    try:
        found = cast("object", json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _code(answer: bytes) -> str:
    return str(_error(answer).get("code"))


def _message(answer: bytes) -> str:
    return str(_error(answer).get("message", "no connection"))
