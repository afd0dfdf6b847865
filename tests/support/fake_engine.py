"""A stand-in for a vLLM server: real sockets, OpenAI's answers, and a switch for each fault."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.upstream import stop_accepting

MODEL = "tiny"
_HEADS = {
    200: "200 OK",
    400: "400 Bad Request",
    404: "404 Not Found",
    429: "429 Too Many Requests",
    500: "500 Internal Server Error",
    503: "503 Service Unavailable",
}


class FakeEngine:
    """`mode` decides how generation ends: ok, reset, cut, garbage, stall, no_done, error_event,
    or a status. `/health` and `/v1/models` answer as long as the port is open and `healthy`;
    `counts`: `/metrics` tells how many requests it works on."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.name = name
        self.port = port
        self.mode: str | int = "ok"
        self.healthy = True
        self.counts = False
        self.models: tuple[str, ...] = (MODEL,)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.canaries = 0
        self.busy = 0
        self.busiest = 0
        self.left_early = threading.Event()
        self.entered = threading.Semaphore(0)
        self._going = asyncio.Event()
        self._going.set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def open(self) -> None:
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def close_port(self) -> None:
        """As if the process died: every connection is reset and the port refuses."""
        asyncio.run_coroutine_threadsafe(self._close_port(), self._loop).result()

    def hold(self) -> None:
        """What is generated from now on waits for `release`."""
        self._loop.call_soon_threadsafe(self._going.clear)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._going.set)

    def stop(self) -> None:
        self.close_port()
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_port(self) -> None:
        if self._server is not None:
            await stop_accepting(self._server)
            self._server = None
        for writer in tuple(self._writers):
            _reset(writer)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                start, headers, body = await _request(reader)
                await self._answer(start.split()[1], headers, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(
        self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if path == "/health":
            _respond(writer, 200 if self.healthy else 500, b"")
        elif path == "/v1/models":
            data = [{"id": name, "object": "model", "root": name} for name in self.models]
            _respond(writer, 200, json.dumps({"object": "list", "data": data}).encode())
        elif path == "/metrics":
            page = f"vllm:num_requests_running{{}} {self.busy}.0\n".encode()
            _respond(writer, 200 if self.counts else 404, page if self.counts else b"")
        else:
            await self._generate(path, json.loads(body), headers, writer)
        await writer.drain()

    async def _generate(
        self,
        path: str,
        asked: dict[str, Any],
        headers: dict[str, str],
        writer: asyncio.StreamWriter,
    ) -> None:
        if asked.get("max_tokens") == 1 and asked.get("prompt") == "1":
            self.canaries += 1
        else:
            self.asked.append(asked)
            self.headers.append(headers)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        self.entered.release()
        try:
            await self._going.wait()
            await self._finish(path, asked, writer)
        finally:
            self.busy -= 1

    async def _finish(self, path: str, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        mode = self.mode
        if isinstance(mode, int):
            error = {"error": {"message": f"{self.name} says {mode}", "code": mode}}
            _respond(writer, mode, json.dumps(error).encode())
        elif mode == "reset":
            _reset(writer)
        elif mode == "garbage":
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        elif mode == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
            await writer.drain()
            _reset(writer)
        elif mode == "not_json":
            _respond(writer, 200, b"<html>")
        elif asked.get("stream"):
            await self._stream(path, asked, writer)
        else:
            _respond(writer, 200, json.dumps(self._body(path, asked)).encode())

    async def _stream(self, path: str, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        try:
            async for event in self._events(path, asked):
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                if writer.is_closing():
                    raise ConnectionResetError
        except ConnectionError:
            self.left_early.set()
            raise
        if self.mode == "cut_stream":
            _reset(writer)
        else:
            writer.write(b"0\r\n\r\n")

    async def _events(self, path: str, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        words = ["Hel", "lo ", self.name] if self.mode != "endless" else ["x"] * 10_000_000
        for word in words:
            choice = {"index": 0, "finish_reason": None}
            piece = {"delta": {"content": word}} if "chat" in path else {"text": word}
            yield _event({"id": "1", "model": asked.get("model"), "choices": [{**choice, **piece}]})
            if self.mode == "endless":
                await asyncio.sleep(0)
        if self.mode == "error_event":
            yield _event({"error": {"message": "engine died", "code": 500}})
        if self.mode == "bad_event":
            yield b"data: {nonsense\n\n"
        usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
        yield _event({"id": "1", "model": asked.get("model"), "choices": [], "usage": usage})
        if self.mode not in ("no_done", "error_event", "cut_stream"):
            yield b"data: [DONE]\n\n"

    def _body(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        text = f"Hello from {self.name}"
        common = {
            "id": "cmpl-1",
            "created": 1,
            "model": asked.get("model"),
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }
        if path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            return {**common, "object": "list", "data": data}
        if path.endswith("/chat/completions"):
            said = asked["messages"][-1]["content"]
            message = {"role": "assistant", "content": f"{text}: {said}"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {**common, "object": "chat.completion", "choices": [choice]}
        choice = {"index": 0, "text": text, "finish_reason": "length"}
        return {**common, "object": "text_completion", "choices": [choice]}


@contextmanager
def engines(count: int) -> Iterator[list[FakeEngine]]:
    fleet = [FakeEngine(f"e{number}") for number in range(count)]
    try:
        yield fleet
    finally:
        for engine in fleet:
            engine.stop()


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.strip().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    headers = {name.lower(): value for name, value in pairs}
    return start, headers, await reader.readexactly(int(headers.get("content-length", 0)))


def _respond(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(
        f"HTTP/1.1 {_HEADS[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
