"""Many streams at once, each on a connection of its own, read as fast as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from vllmdeploy.wire import loop

T = TypeVar("T")
# Only a peer that hangs runs into it.
_ALIVE_S = 120.0

_EVENT = b"data: {"
_END = b"\r\n0\r\n\r\n"


class Stream(asyncio.Protocol):
    """Sends one request and counts the events that come back; ends with the last chunk."""

    def __init__(self, request: bytes) -> None:
        running = asyncio.get_running_loop()
        self._request = request
        self._tail = b""
        self._left = False
        self.events = 0
        self.begun: asyncio.Future[None] = running.create_future()
        self.ended: asyncio.Future[None] = running.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(_EVENT)
        if self.events and not self.begun.done():
            self.begun.set_result(None)
        self._tail = (self._tail + data)[-len(_END) :]
        if self._tail == _END:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tail == _END and exc is None:
            self.ended.set_result(None)
        if self.ended.done() or self._left:
            return
        error = ConnectionError(f"the stream broke after {self.events} events: {self._tail!r}")
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_exception(error)

    def leave(self) -> None:
        self._left = True
        self._transport.abort()


def stream_request(chunks: int, every_ms: int, key: str) -> bytes:
    value = {
        "model": "fake",
        "messages": [{"role": "user", "content": "Is 7 even?"}],
        "stream": True,
        "chunks": chunks,
        "every_ms": every_ms,
    }
    return post(json.dumps(value).encode(), key)


def post(body: bytes, key: str, path: str = "/v1/chat/completions") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "host: bench",
        "content-type: application/json",
        f"authorization: Bearer {key}",
        f"content-length: {len(body)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


def _place(url: str) -> tuple[str, int]:
    place = urlsplit(url)
    return place.hostname or "", place.port or 0


async def whole(url: str, request: bytes) -> None:
    """One short answer to one request, which must be a success."""
    host, port = _place(url)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        await writer.drain()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _ALIVE_S)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"{url} answered {head[:60]!r}")
    finally:
        writer.close()


async def open_streams(url: str, request: bytes, count: int, *, at_once: int = 100) -> list[Stream]:
    """All of them begun: each has its first event."""
    running = asyncio.get_running_loop()
    host, port = _place(url)
    gate = asyncio.Semaphore(at_once)

    async def one() -> Stream:
        async with gate:
            _, stream = await running.create_connection(lambda: Stream(request), host, port)
            await asyncio.wait_for(stream.begun, _ALIVE_S)
            return stream

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def all_ended(streams: list[Stream]) -> int:
    """How many events came, in all."""
    await asyncio.wait_for(asyncio.gather(*(one.ended for one in streams)), _ALIVE_S)
    return sum(one.events for one in streams)


def run(work: Coroutine[Any, Any, T]) -> T:
    return loop.run(work)
