"""A gateway with too few files, with a thousand instances, and with keys that are nearly right."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.gateway.starting import (
    ALIVE_S,
    COMPLETIONS,
    engines,
    exchange,
    post,
    reply,
    started,
    until,
)
from tests.support.upstream import FakeEngine
from vllmdeploy.gateway import keys
from vllmdeploy.gateway.engine_page import Merged
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.wire.loop import raise_open_files

FILES = 256
CLIENTS = 1_000
INSTANCES = 1_000


@asynccontextmanager
async def with_few_files(engine: FakeEngine) -> AsyncGenerator[tuple[int, int]]:
    """A gateway that may not open more than 256 files: its port and its process."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh"),
        *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", "127.0.0.1:0"),
        *("--upstream", engine.url, "--no-canary"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    said = b""
    try:
        while b"listening" not in said or b'"ready"' not in said:
            said += await asyncio.wait_for(process.stderr.readline(), ALIVE_S)
        found = re.search(rb"127\.0\.0\.1:(\d+)", said[said.index(b"listening") :])
        assert found
        rest = asyncio.ensure_future(process.stderr.read())
        yield int(found[1]), process.pid
        process.terminate()
        await asyncio.wait_for(process.wait(), ALIVE_S)
        assert b"Traceback" not in await rest
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has no /proc")
@pytest.mark.long
async def test_more_clients_than_files_are_answered_or_refused_and_nothing_is_left_open() -> None:
    raise_open_files()
    async with engines(1) as (engine,), with_few_files(engine) as (port, process):
        before = open_files(process)

        async def one() -> int:
            try:
                raw = await exchange(port, post({"model": "m", "prompt": "x"}, COMPLETIONS))
            except ConnectionError:
                return 0
            return reply(raw).status if raw else 0

        statuses = await asyncio.wait_for(asyncio.gather(*(one() for _ in range(CLIENTS))), ALIVE_S)
        assert {*statuses} <= {200, 503, 0}

        async def recovered() -> None:
            while await one() != 200:  # noqa: ASYNC110 - it may be full of them for a moment more
                await asyncio.sleep(0.05)

        await asyncio.wait_for(recovered(), ALIVE_S)
        # Connections to engines are kept for a while: a few more than before are no leak.
        await until(lambda: open_files(process) <= before + 2)


async def test_a_scrape_of_a_thousand_instances_holds_nobody_up_for_long() -> None:
    """What others get to do meanwhile is counted: a piece of work at a time, then their turn."""
    async with engines(1) as (engine,), started([engine]) as gateway:
        instance = gateway.instance(engine)
        page = b"".join(
            b"# HELP vllm:f%d x\n# TYPE vllm:f%d histogram\n" % (number, number)
            + b"".join(b'vllm:f%d_bucket{le="%d"} 1\n' % (number, le) for le in range(20))
            for number in range(4)
        )
        _copied(gateway.running.fleet.instances, instance, page)
        turns = 0
        over = asyncio.Event()

        async def others() -> None:
            nonlocal turns
            while not over.is_set():
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.ensure_future(others())
        asked = b"GET /metrics HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
        answer = reply(await exchange(gateway.port, asked))
        over.set()
        await counting
        for number in range(1, INSTANCES):
            del gateway.running.fleet.instances[f"copy-{number}"]
        assert answer.status == 200
        assert answer.body.count(b"vllm:f0_bucket{") == 20 * INSTANCES
        assert turns > INSTANCES


def _copied(instances: dict[str, Instance], one: Instance, page: bytes) -> None:
    one.engine_page = page
    for number in range(1, INSTANCES):
        instances[f"copy-{number}"] = one


def test_a_page_is_made_in_pieces_that_are_one_page_together() -> None:
    merged = Merged()
    for number in range(3):
        merged.add(
            str(number), b'# HELP vllm:a x\n# TYPE vllm:a gauge\nvllm:a 1\nvllm:a{b="c"} 2\n'
        )
    assert b"".join(merged.families()).decode().splitlines() == [
        "# HELP vllm:a x",
        "# TYPE vllm:a gauge",
        *(
            line
            for number in range(3)
            for line in (
                f'vllm:a{{instance="{number}"}} 1',
                f'vllm:a{{instance="{number}",b="c"}} 2',
            )
        ),
    ]


@pytest.mark.parametrize("presented", ["first", "last", "nearly", "wrong", "x" * 10_000])
def test_the_work_of_refusing_a_key_does_not_depend_on_what_it_is(
    presented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of one length, each compared with each: no beginning of a key takes longer."""
    of = {"first": "sk-key-0", "last": "sk-key-49", "nearly": "sk-key-4"}
    known = keys.parse("\n".join(f"n{number}:sk-key-{number}" for number in range(50)), "keys")
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    known.identify(of.get(presented, presented).encode(), 0.0)
    size = hashlib.sha256().digest_size
    assert compared == [(size, size)] * 50
