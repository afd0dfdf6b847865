"""A real gateway on loopback inside the test's own loop, and a client to ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from tests.support.upstream import FakeEngine
from vllmdeploy.gateway.options import spec
from vllmdeploy.gateway.run import Running

_PATIENCE_S = 20.0
_POLL_S = 0.02


class Api:
    """What one client of the gateway sees."""

    def __init__(self, running: Running, client: httpx.AsyncClient) -> None:
        self.running = running
        self.client = client

    async def get(self, path: str, **fields: str) -> httpx.Response:
        return await self.client.get(path, headers=_names(fields))

    async def post(self, path: str, value: object, **fields: str) -> httpx.Response:
        return await self.client.post(path, json=value, headers=_names(fields))

    async def until(self, done: Callable[[], Awaitable[bool]]) -> None:
        async def poll() -> None:
            while not await done():  # noqa: ASYNC110 - what is asked is on the other side of HTTP
                await asyncio.sleep(_POLL_S)

        await asyncio.wait_for(poll(), _PATIENCE_S)

    async def until_health(self, status: int) -> None:
        async def seen() -> bool:
            return (await self.get("/health")).status_code == status

        await self.until(seen)

    async def until_ready(self, count: int) -> None:
        async def seen() -> bool:
            return bool((await self.get("/")).json()["instances"]["ready"] == count)

        await self.until(seen)


def _names(fields: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): text for name, text in fields.items()}


@asynccontextmanager
async def gateway(*options: str) -> AsyncGenerator[Api, None]:
    """The options of the command line; checks follow each other fast, and no canary is sent."""
    wanted = spec(["--listen", "127.0.0.1:0", "--no-canary", *options])
    thresholds = replace(wanted.thresholds, check_interval_s=0.05, check_interval_out_s=0.02)
    running = Running(replace(wanted, thresholds=replace(thresholds, drain_timeout_s=1.0)))
    serving = asyncio.ensure_future(running.serve())
    try:
        client = await _client(running, serving)
        async with client:
            yield Api(running, client)
    finally:
        running.stop()
        await serving


async def _client(running: Running, serving: asyncio.Future[None]) -> httpx.AsyncClient:
    while not running.sockets and not serving.done():  # noqa: ASYNC110 - it has no such event
        await asyncio.sleep(_POLL_S)
    if serving.done():
        await serving
    port: int = running.sockets[0].getsockname()[1]
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=_PATIENCE_S
    )


@asynccontextmanager
async def engines(*models: str) -> AsyncGenerator[list[FakeEngine], None]:
    started = [await FakeEngine(model=model).start() for model in models]
    try:
        yield started
    finally:
        for engine in started:
            await engine.stop()


@asynccontextmanager
async def served(
    *options: str, models: tuple[str, ...] = ("m",)
) -> AsyncGenerator[tuple[Api, list[FakeEngine]], None]:
    """A gateway with one engine for each model, all of them ready."""
    async with engines(*models) as started:
        given = [word for engine in started for word in ("--upstream", engine.url)]
        async with gateway(*given, *options) as api:
            await api.until_ready(len(started))
            yield api, started


def write(path: Path, text: str) -> None:
    """As the tools write it: a new file that takes the place of the old one at once."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def events(body: str) -> list[Any]:
    """The data of each event of a stream; [DONE] as it stands."""
    found: list[Any] = []
    for block in body.split("\n\n"):
        if block:
            assert block.startswith("data: ")
            data = block[len("data: ") :]
            found.append(data if data == "[DONE]" else json.loads(data))
    return found
