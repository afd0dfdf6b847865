"""One gateway of several processes: to everybody outside it is one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_gateway import engines, write
from tests.support.upstream import FakeEngine
from vllmdeploy.errors import UsageError
from vllmdeploy.gateway.crew import listeners_of
from vllmdeploy.gateway.doors import bind
from vllmdeploy.gateway.options import spec

KEY, ADMIN = "sk-first-0001", "sk-admin-0003"
ASKED = {"model": "m", "prompt": "x"}
PATIENCE_S = 60.0
POLL_S = 0.05


class Front:
    """A gateway with two workers as its users see it: each call is a connection of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    async def call(
        self, path: str, value: object = None, method: str = "", key: str = ADMIN
    ) -> tuple[int, Any]:
        body = b"" if value is None else json.dumps(value).encode()
        method = method or ("POST" if body else "GET")
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return await asyncio.wait_for(self._exchange(head.encode() + body), PATIENCE_S)

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        """No httpx here: it takes so long to begin that engines of this loop seem to be ill."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            head, _, told = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        is_json = b"application/json" in head
        return int(head.split()[1]), json.loads(told) if is_json else told.decode()

    async def until(self, done: Callable[[], Awaitable[bool]]) -> None:
        async def poll() -> None:
            while not await done():  # noqa: ASYNC110 - what is asked is on the other side of HTTP
                await asyncio.sleep(POLL_S)

        await asyncio.wait_for(poll(), PATIENCE_S)

    async def until_health(self, status: int) -> None:
        async def seen() -> bool:
            return (await self.call("/health"))[0] == status

        await self.until(seen)

    def workers(self) -> list[int]:
        number = self.process.pid
        return [
            int(one) for one in Path(f"/proc/{number}/task/{number}/children").read_text().split()
        ]

    async def counted(self, name: str) -> int:
        _, page = await self.call("/metrics")
        return sum(int(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def alive(number: int) -> bool:
    return Path(f"/proc/{number}/exe").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def front(
    folder: Path, *engines_: FakeEngine, workers: int = 2, port: int = 0
) -> AsyncGenerator[Front, None]:
    keys, admins = folder / "keys", folder / "admins"
    if not keys.exists():
        write(keys, f"ann:{KEY}\n")
    write(admins, f"{ADMIN}\n")
    port = port or free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllmdeploy.gateway", "--workers", str(workers), "--no-canary"),
        *("--listen", f"127.0.0.1:{port}", "--api-keys-file", str(keys)),
        *("--admin-key-file", str(admins), "--drain-timeout", "10", "--policy", "round_robin"),
        *("--takeover", str(folder / "takeover"), "--name", str(workers)),
        *(word for engine in engines_ for word in ("--upstream", engine.url)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        found = Front(process, port)

        async def listens() -> bool:
            assert process.returncode is None
            try:
                status, _ = await found.call("/health")
                named = (await found.call("/"))[1]["name"] == str(workers)
            except OSError:
                return False
            return named and status == (200 if engines_ else 503)

        await found.until(listens)
        yield found
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE_S)


async def test_all_workers_serve_and_their_numbers_are_one(tmp_path: Path) -> None:
    async with engines("m", "m") as two, front(tmp_path, *two) as gateway:
        asked = [gateway.call("/v1/completions", ASKED, key=KEY) for _ in range(40)]
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}

        async def counted() -> bool:
            return await gateway.counted("vllmdeploy_gateway_key_requests_total") == 40

        await gateway.until(counted)
        _, listed = await gateway.call("/admin/instances")
        assert sum(one["requests"] for one in listed["instances"]) == 40
        assert len(gateway.workers()) == 2
        _, health = await gateway.call("/health")
        assert health["models"]["m"]["max_workers"] == 2 * 256
        status, _ = await gateway.call("/admin/instances", key=KEY)
        assert status == 401


async def test_what_administrators_ask_for_is_in_force_in_every_worker_at_once(
    tmp_path: Path,
) -> None:
    async with engines("m", "m") as (one, other), front(tmp_path, one, other) as gateway:
        name = one.url.removeprefix("http://")
        status, told = await gateway.call(f"/admin/instances/{name}/drain", {})
        assert (status, told["state"]) == (200, "draining")
        before = len(one.asked)
        asked = [gateway.call("/v1/completions", ASKED, key=KEY) for _ in range(20)]
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        generated = [seen for seen in one.asked[before:] if seen.path == "/v1/completions"]
        assert generated == []
        status, _ = await gateway.call("/admin/policy", {"routing": "random"}, "PUT")
        assert status == 200
        for _ in range(6):
            assert (await gateway.call("/admin/policy"))[1]["routing"] == "random"
        status, _ = await gateway.call(f"/admin/instances/{other.url[7:]}", method="DELETE")
        assert status == 200
        asked = [gateway.call("/v1/completions", ASKED, key=KEY) for _ in range(6)]
        assert {status for status, _ in await asyncio.gather(*asked)} == {503}


async def test_a_killed_worker_is_replaced_and_nothing_it_counted_is_forgotten(
    tmp_path: Path,
) -> None:
    async with engines("m") as (engine,), front(tmp_path, engine) as gateway:
        asked = [gateway.call("/v1/completions", ASKED, key=KEY) for _ in range(20)]
        await asyncio.gather(*asked)
        name = "vllmdeploy_gateway_key_requests_total"

        async def counted() -> bool:
            return await gateway.counted(name) == 20

        await gateway.until(counted)
        killed = gateway.workers()[0]
        os.kill(killed, signal.SIGKILL)
        # Who comes meanwhile waits for a moment, or is served by the other.
        asked = [gateway.call("/v1/completions", ASKED, key=KEY) for _ in range(20)]
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        assert killed not in gateway.workers()
        assert len(gateway.workers()) == 2

        async def all_counted() -> bool:
            return await gateway.counted(name) == 40

        await gateway.until(all_counted)


async def test_a_key_has_its_limit_over_all_workers_together(tmp_path: Path) -> None:
    write(tmp_path / "keys", f"ann:{KEY} per_minute=1000000 tokens_per_day=4\n")
    async with engines("m") as (engine,), front(tmp_path, engine) as gateway:

        async def refused_everywhere() -> bool:
            asked = [gateway.call("/v1/completions", ASKED, key=KEY) for _ in range(8)]
            return {status for status, _ in await asyncio.gather(*asked)} == {429}

        await gateway.until(refused_everywhere)


async def test_one_of_three_workers_takes_over_from_one_of_two_without_a_loss(
    tmp_path: Path,
) -> None:
    async with engines("m") as (engine,), front(tmp_path, engine) as old:
        seen: list[int] = []
        enough = asyncio.Event()  # before Python 3.12 wait_for may lose a cancellation

        async def keep_asking() -> None:
            while not enough.is_set():
                seen.append((await old.call("/v1/completions", ASKED, key=KEY))[0])

        asking = [asyncio.ensure_future(keep_asking()) for _ in range(4)]
        async with front(tmp_path, engine, workers=3, port=old.port) as new:
            await asyncio.wait_for(old.process.wait(), PATIENCE_S)
            assert len(new.workers()) == 3
            after = len(seen)

            async def some_more() -> bool:
                return len(seen) > after + 20

            await new.until(some_more)
            enough.set()
            await asyncio.gather(*asking)
        assert set(seen) == {200}


async def test_the_end_of_the_parent_is_the_end_of_its_workers(tmp_path: Path) -> None:
    async with front(tmp_path) as gateway:
        workers = gateway.workers()
        gateway.process.kill()
        await gateway.process.wait()

        async def gone() -> bool:
            return not any(map(alive, workers))

        await gateway.until(gone)


def test_every_socket_has_a_worker_and_every_worker_a_socket() -> None:
    bound = bind("127.0.0.1", 0, 3)
    try:
        for workers in (1, 2, 3, 5):
            given = [listeners_of(bound, number, workers) for number in range(workers)]
            assert all(given)
            assert {one for some in given for one in some} == set(bound)
    finally:
        for one in bound:
            one.close()


def test_a_port_that_another_gateway_has_is_refused_with_workers_too() -> None:
    bound = bind("127.0.0.1", 0, 2)
    try:
        with pytest.raises(UsageError, match="cannot be listened on"):
            bind("127.0.0.1", int(bound[0].getsockname()[1]), 2)
    finally:
        for one in bound:
            one.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--workers", "0"), "from 1 to 32"),
        (("--workers", "2", "--files", "f"), "one process"),
        (("--worker", "x"), "own workers"),
    ],
)
def test_workers_that_cannot_be_are_refused(options: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        spec(options)
