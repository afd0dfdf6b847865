"""A stand-in for a vLLM server on a real socket, whose faults are switched on and off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Turns of the loop after which a connection accepted just now has its task. Before Python 3.13 a
# server that is closed earlier forgets it, and so does a task cancelled before it began.
_ACCEPTED_WITHIN = 5
_RESET = struct.pack("ii", 1, 0)  # linger for no time at all: close becomes a reset


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class FakeEngine:
    """`mode` says what an inference request gets; a callable decides by the request's number.

    ok, stall, reset, close, cut (in the middle), no_done, error_event, slow, bytewise, a status
    such as 503, or raw:... which is sent as it stands before the connection is closed.
    """

    model: str = "m"
    mode: str | Callable[[int], str] = "ok"
    health: int = 200
    health_stalls: bool = False
    events: int = 5
    pause_s: float = 0.0
    pooling: bool = False
    counters: str = ""
    asked: list[Asked] = field(default_factory=list[Asked])
    canaries: int = 0
    checks: int = 0
    open: int = 0
    left: int = 0
    sent: int = 0  # events of streams
    port: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> FakeEngine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def stop(self) -> None:
        """As kill -9 does: the port is closed and every connection is reset."""
        await stop_accepting(self._server)
        for task in tuple(self._tasks):
            task.cancel()
        for writer in tuple(self._writers):
            _reset(writer)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 2)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.open += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        asked = Asked(method, path, fields, body)
        if method == "GET":
            await self._page(asked, writer)
        else:
            await self._infer(asked, reader, writer)
        return fields.get("connection") != "close" and not writer.is_closing()

    async def _page(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path == "/health":
            self.checks += 1
            if self.health_stalls:
                await asyncio.Event().wait()
            await _answer(writer, self.health, b"")
        elif asked.path == "/v1/models":
            cards = [{"id": self.model, "object": "model", "max_model_len": 4096}]
            await _answer(writer, 200, json.dumps({"data": cards}).encode())
        elif asked.path == "/metrics" and self.counters:
            await _answer(writer, 200, self.counters.encode(), "text/plain")
        else:
            await _answer(writer, 404, b'{"detail":"Not Found"}')

    async def _infer(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        is_canary = asked.body.find(b'"Hi"') >= 0
        if is_canary:
            self.canaries += 1
        else:
            self.asked.append(asked)
        mode = self.mode if isinstance(self.mode, str) else self.mode(len(self.asked))
        if self.pooling and asked.path == "/v1/completions":
            mode = "404"
        match mode:
            case "stall":
                await self._until_left(reader)
            case "reset":
                _reset(writer)
            case "close":
                writer.close()
            case "gate":
                await self.gate.wait()
                await self._ok(asked, reader, writer)
            case status if status.isdigit():
                await _answer(writer, int(status), _error(f"status {status}"))
            case raw if raw.startswith("raw:"):
                writer.write(raw[4:].encode("latin-1"))
                await writer.drain()
                writer.close()
            case _:
                await self._ok(asked, reader, writer, mode)

    async def _ok(
        self,
        asked: Asked,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        mode: str = "ok",
    ) -> None:
        given = asked.json
        text = given.get("prompt") or given.get("messages", [{}])[-1].get("content", "")
        if given.get("stream"):
            await self._stream(asked, str(text), reader, writer, mode)
            return
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        choices = [
            {"index": i, "finish_reason": "length", **_part(asked.path, f"{text}!", "message")}
            for i in range(given.get("n") or 1)
        ]
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        value = {"id": "cmpl-1", "model": given.get("model"), "choices": choices, "usage": usage}
        data = _whole(200, json.dumps(value).encode())
        if mode == "bytewise":
            await _bytewise(writer, data)
        elif mode == "cut":
            writer.write(data[: len(data) - 20])
            await writer.drain()
            _reset(writer)
        else:
            writer.write(data)
            await writer.drain()

    async def _stream(
        self,
        asked: Asked,
        text: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        mode: str,
    ) -> None:
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        gone = asyncio.ensure_future(reader.read(1))
        try:
            for number in range(self.events):
                if mode == "cut" and number == self.events // 2:
                    _reset(writer)
                    return
                if mode == "hang" and number == self.events // 2:
                    await gone
                reason = "length" if number == self.events - 1 else None
                part = _part(asked.path, f"{text}{number} é", "delta")
                event = {"id": "cmpl-1", "choices": [{"index": 0, "finish_reason": reason, **part}]}
                data = b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
                send = _bytewise if mode == "bytewise" else _send
                await send(writer, _chunk(data))
                self.sent += 1
                if self.pause_s:
                    await asyncio.wait({gone}, timeout=self.pause_s)
                if gone.done():
                    self.left += 1
                    writer.close()
                    return
            if mode == "error_event":
                await _send(writer, _chunk(b'data: {"error": {"message": "engine died"}}\n\n'))
            elif mode != "no_done":
                await _send(writer, _chunk(b"data: [DONE]\n\n"))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        except ConnectionError:
            self.left += 1
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _until_left(self, reader: asyncio.StreamReader) -> None:
        await reader.read(1)
        self.left += 1


async def stop_accepting(server: asyncio.Server) -> None:
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(_ACCEPTED_WITHIN):
        await asyncio.sleep(0)
    server.close()


def _part(path: str, text: str, name: str) -> dict[str, Any]:
    return {name: {"content": text}} if path.endswith("chat/completions") else {"text": text}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _bytewise(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0)


async def _answer(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json"
) -> None:
    writer.write(_whole(status, body, kind))
    await writer.drain()


def _whole(status: int, body: bytes, kind: str = "application/json") -> bytes:
    fields = f"content-type: {kind}\r\nx-request-id: engine-own\r\ncontent-length: {len(body)}\r\n"
    return f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + body


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "T", "code": 1}}).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
