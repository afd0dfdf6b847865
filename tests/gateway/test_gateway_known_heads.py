"""The very same head again on the very same connection, or one of another length: what was decided
before holds only for as long as nothing that it rests on has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.running_gateway import Api, served, write

KEY, OTHER, ADMIN = "sk-first-0001", "sk-other-0002", "sk-admin-0003"
BODY = b'{"model":"m","prompt":"x"}'
ALIVE_S = 60.0


class Line:
    """One connection, on which the same bytes are sent, but for one more after each second time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._asked = 0

    async def ask(self, first: bytes = b"POST /v1/completions", key: str = KEY) -> int:
        head = b"%b HTTP/1.1\r\nhost: g\r\nx-api-key: %b\r\ncontent-length: %d\r\n\r\n"
        body = BODY + b" " * (self._asked // 2)
        self._asked += 1
        self._writer.write(head % (first, key.encode(), len(body)) + body)
        answer = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), ALIVE_S)
        lengths = [line for line in answer.lower().split(b"\r\n") if b"content-length" in line]
        await self._reader.readexactly(int(lengths[0].split(b":")[1]))
        return int(answer.split(b" ")[1])


@asynccontextmanager
async def line(keys: Path, *options: str) -> AsyncGenerator[tuple[Line, Api], None]:
    async with served("--api-keys-file", str(keys), *options) as (api, _):
        port = int(api.running.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Line(reader, writer), api
        finally:
            writer.close()
            await writer.wait_closed()


async def test_a_revoked_key_ends_between_two_equal_requests(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY}\n")
    async with line(keys) as (asked, api):
        assert [await asked.ask(), await asked.ask()] == [200, 200]
        await api.running.gateway.access.take_keys(f"bob:{OTHER}\n", "keys")
        assert await asked.ask() == 401
        await api.running.gateway.access.take_keys(f"ann:{KEY}\n", "keys")
        assert await asked.ask() == 200


async def test_a_key_expires_between_two_equal_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY} expires=2099-01-01\n")
    async with line(keys) as (asked, _):
        assert [await asked.ask(), await asked.ask()] == [200, 200]
        later = SimpleNamespace(time=lambda: time.time() + 100 * 366 * 86_400)
        monkeypatch.setattr("vllmdeploy.gateway.access.time", later)
        assert await asked.ask() == 401


async def test_what_a_key_may_do_is_asked_each_time(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY} per_minute=1000000\n")
    async with line(keys) as (asked, api):
        assert [await asked.ask(), await asked.ask()] == [200, 200]
        access = api.running.gateway.access
        await access.take_keys(f"ann:{KEY} models=another\n", "keys")
        assert await asked.ask() == 403
        await access.take_keys(f"ann:{KEY} per_minute=1\n", "keys")
        api.running.gateway.ledger.used.clear()
        assert [await asked.ask(), await asked.ask()] == [200, 429]


async def test_an_administrators_key_ends_between_two_equal_requests(tmp_path: Path) -> None:
    keys, admins = tmp_path / "keys", tmp_path / "admins"
    write(keys, f"ann:{KEY}\n")
    write(admins, f"{ADMIN}\n")
    first = b"GET /admin/policy"
    async with line(keys, "--admin-key-file", str(admins)) as (asked, api):
        assert [await asked.ask(first, ADMIN), await asked.ask(first, ADMIN)] == [200, 200]
        await api.running.gateway.access.take_admin_keys(f"{OTHER}\n", "admins")
        assert await asked.ask(first, ADMIN) == 401


async def test_an_instance_leaves_between_two_equal_requests(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY}\n")
    async with line(keys) as (asked, api):
        assert [await asked.ask(), await asked.ask()] == [200, 200]
        fleet = api.running.fleet
        fleet.remove(next(iter(fleet.instances)))
        assert await asked.ask() == 404
