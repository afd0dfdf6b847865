"""An OpenAI server on a real socket whose every answer the test decides."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request; `nth` counts those with the same prompt, from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: Body
    nth: int

    @property
    def prompt(self) -> str:
        if "prompt" in self.body:
            return str(self.body["prompt"])
        messages = self.body.get("messages") or [{"content": ""}]
        return str(messages[0]["content"])


@dataclass(frozen=True)
class Say:
    """What the server does: an answer, a closed connection (`cut`), silence (`hang`), or a byte
    now and then for as long as the other side listens (`trickle`)."""

    body: Body | bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hang: bool = False
    trickle: bool = False


def completion(text: str, *, tokens: int = 3) -> Say:
    return Say(
        {
            "id": "cmpl-1",
            "object": "chat.completion",
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "text": text,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": tokens + 2},
        }
    )


def echo(asked: Asked) -> Say:
    return completion(f"echo {asked.prompt}")


class Upstream:
    def __init__(self, script: Callable[[Asked], Say], models: tuple[str, ...]) -> None:
        self.script = script
        self.models = models
        self.listed: Say | None = None
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self.port = 0
        self.at_once = 0
        self._seen: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [asked.prompt for asked in self.asked]

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def stop(self) -> None:
        """Refuses connections from now on and cuts those that are open."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    def listen_again(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def end(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=1 << 26
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if path == "/v1/models":
            said = self.listed or Say({"data": [{"id": model} for model in self.models]})
        else:
            said = self._answer(method, path, headers, json.loads(raw))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if said.hang:
                await asyncio.Event().wait()
        finally:
            self.at_once -= 1
        if said.cut:
            return False
        if said.trickle:
            await self._trickle(writer)
        body = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in said.headers.items())
        writer.write(
            f"HTTP/1.1 {said.status} X\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode()
            + body
        )
        await writer.drain()
        return True

    async def _trickle(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 1000000\r\n\r\n")
        while not writer.transport.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.01)

    def _answer(self, method: str, path: str, headers: dict[str, str], body: Body) -> Say:
        asked = Asked(method, path, headers, body, 1)
        nth = self._seen[asked.prompt] = self._seen.get(asked.prompt, 0) + 1
        asked = Asked(method, path, headers, body, nth)
        self.asked.append(asked)
        return self.script(asked)


@contextmanager
def serving(
    script: Callable[[Asked], Say] = echo, models: tuple[str, ...] = ("tiny",)
) -> Generator[Upstream]:
    upstream = Upstream(script, models)
    upstream.start()
    try:
        yield upstream
    finally:
        upstream.end()
