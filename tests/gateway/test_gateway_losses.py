"""Nothing is lost: not while gateways replace each other, not while instances die, and no stream
or engine is left behind. What takes long counts by the thousand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.gateway.starting import (
    ALIVE_S,
    COMPLETIONS,
    QUIET,
    closed,
    engines,
    exchange,
    post,
    reply,
    started,
    until,
)
from tests.support.upstream import FakeEngine
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.wire.limits import ClientLimits

STREAM = {"model": "m", "prompt": "hello", "stream": True}
CALLERS = 8


@contextlib.asynccontextmanager
async def program(folder: Path, engine: FakeEngine, port: int) -> AsyncGenerator[Program]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", f"127.0.0.1:{port}"),
        *("--upstream", engine.url, "--no-canary", "--takeover", str(folder / "takeover")),
        stderr=asyncio.subprocess.PIPE,
    )
    found = Program(process)
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Program:
    """A gateway as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def said(self, word: str) -> str:
        assert self.process.stderr is not None
        while True:
            line = await asyncio.wait_for(self.process.stderr.readline(), ALIVE_S)
            assert line, f"the gateway ended before it said {word}"
            if word in (text := line.decode()):
                return text

    async def port(self) -> int:
        found = re.search(r"127\.0\.0\.1:(\d+)", await self.said("listening"))
        assert found
        return int(found[1])


async def test_gateways_that_replace_each_other_lose_no_request(tmp_path: Path) -> None:
    """Three replacements, while callers come one after another and a stream goes on."""
    async with engines(1) as (engine,), program(tmp_path, engine, 0) as first:
        port = await first.port()
        await first.said('"after": "ready"')
        engine.mode = "gate"
        stream = asyncio.ensure_future(exchange(port, post(STREAM)))
        await until(lambda: len(engine.asked) == 1)
        engine.mode = "ok"
        over = asyncio.Event()
        callers = [asyncio.ensure_future(calling(port, over)) for _ in range(CALLERS)]
        async with contextlib.AsyncExitStack() as stack:
            old = first
            for _ in range(3):
                new = await stack.enter_async_context(program(tmp_path, engine, port))
                await old.said("taken over")
                old = new
            assert first.process.returncode is None  # its stream has not ended
            over.set()
            statuses = await asyncio.wait_for(asyncio.gather(*callers), ALIVE_S)
            assert {one for each in statuses for one in each} == {200}
            engine.gate.set()
            answer = reply(await asyncio.wait_for(stream, ALIVE_S))
            assert answer.whole
            assert answer.body.endswith(b"data: [DONE]\n\n")
            await asyncio.wait_for(first.process.wait(), ALIVE_S)


async def calling(port: int, over: asyncio.Event) -> list[int]:
    """Statuses of one request after another; 0 for one that got no whole answer."""
    found: list[int] = []
    while not over.is_set():
        raw = await exchange(port, post({"model": "m", "prompt": "x"}))
        found.append(reply(raw).status if raw and reply(raw).whole else 0)
    return found


async def test_a_gateway_killed_outright_comes_back_with_its_instances(tmp_path: Path) -> None:
    async with engines(1) as (engine,):
        async with program(tmp_path, engine, 0) as first:
            port = await first.port()
            first.process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(first.process.wait(), ALIVE_S)
        async with program(tmp_path, engine, port) as again:
            assert await again.port() == port
            await again.said('"after": "ready"')
            assert reply(await exchange(port, post({"model": "m", "prompt": "x"}))).status == 200


@pytest.mark.parametrize("path", [COMPLETIONS, "/generate"])
async def test_a_stream_that_stops_without_an_end_is_ended_with_an_error(path: str) -> None:
    thresholds = replace(QUIET, idle_timeout_s=0.2)
    async with engines(1, "hang") as (engine,), started([engine], thresholds=thresholds) as gateway:
        answer = reply(await exchange(gateway.port, post(STREAM, path)))
        assert answer.whole
        assert answer.body.count(b'"error"') == 1
        assert b"[DONE]" not in answer.body
        await until(lambda: engine.left == 1)


async def test_slow_heads_are_closed_and_hold_nobody_up() -> None:
    limits = ClientLimits(head_s=0.2)
    async with engines(1) as (engine,), started([engine], limits=limits) as gateway:
        slow = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(100)]
        for _, writer in slow:
            writer.write(b"POST /generate HTTP/1.1\r\nhost: ")
        assert (await gateway.ask()).status == 200
        said = [await asyncio.wait_for(reader.read(), ALIVE_S) for reader, _ in slow]
        assert {one[:12] for one in said} <= {b"", b"HTTP/1.1 408"}
        for _, writer in slow:
            await closed(writer)


# by the thousand

_DIES_EVERY = 250
QUICK = Thresholds(
    canary=False,
    rise=1,
    check_interval_s=0.2,
    check_interval_out_s=0.02,
    ejection_s=0.01,
    ejection_max_s=0.05,
    drain_timeout_s=0.0,
)
NEVER_OUT = replace(QUIET, faults_in_row=10**9, fault_ratio_min_requests=10**9)


@pytest.mark.long
@pytest.mark.parametrize("count", [4, 2])
async def test_ten_thousand_requests_survive_the_deaths_of_instances(count: int) -> None:
    """Each answer is the one to its own question: the engine repeats it."""
    asked = answered = deaths = 0
    async with engines(count) as found, started(found, thresholds=QUICK) as gateway:

        async def caller(number: int) -> None:
            nonlocal asked, answered
            while asked < 10_000:
                asked += 1
                nonce = f"{number}-{asked}"
                answer = await gateway.ask({"model": "m", "prompt": nonce})
                assert answer.status == 200, answer.body
                assert json.loads(answer.body)["choices"][0]["text"] == f"{nonce}!"
                answered += 1

        def reached(goal: int) -> bool:
            return answered >= goal or any(one.done() for one in callers)

        def is_back(victim: Instance) -> bool:
            return victim.health.serving or all(one.done() for one in callers)

        callers = [asyncio.ensure_future(caller(number)) for number in range(32)]
        while not all(one.done() for one in callers):
            victim = found[deaths % count]
            deaths += 1
            goal = min(deaths * _DIES_EVERY, 10_000)
            await until(partial(reached, goal))
            await victim.stop()
            await victim.start()
            await until(partial(is_back, gateway.instance(victim)))
        await asyncio.gather(*callers)
    assert answered >= 10_000
    assert deaths >= 10


@pytest.mark.long
async def test_of_a_thousand_streams_that_break_each_says_so() -> None:
    chance = random.Random(20261121)
    async with engines(1) as (engine,), started([engine], thresholds=NEVER_OUT) as gateway:
        for number in range(1000):
            engine.mode = chance.choice(["cut", "no_done", "error_event", f"raw:{part(chance)}"])
            path = COMPLETIONS if number % 2 else "/generate"
            raw = await exchange(gateway.port, post(STREAM, path))
            silent = raw.startswith(b"HTTP/1.1 200") and b'"error"' not in raw
            assert not (silent and reply(raw).whole), (number, engine.mode)
            assert b"[DONE]" not in raw, (number, engine.mode)


def part(chance: random.Random) -> str:
    """The beginning of a stream, ended anywhere in its head or in its chunks."""
    event = 'data: {"id":"cmpl-1","choices":[{"index":0,"text":"x"}]}\n\n'
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    whole = head + f"{len(event):x}\r\n{event}\r\n" * 5
    return whole[: chance.randrange(1, len(whole))]


def has_asked(engine: FakeEngine, count: int) -> bool:
    return len(engine.asked) == count


def has_left(engine: FakeEngine, count: int) -> bool:
    return engine.left == count


@pytest.mark.long
async def test_of_a_thousand_clients_that_leave_none_leaves_an_engine_at_work() -> None:
    chance = random.Random(20261121)
    async with engines(1) as (engine,), started([engine]) as gateway:
        for number in range(1000):
            stream = bool(number % 2)
            engine.mode = "hang" if stream else "stall"
            asked = len(engine.asked)
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            path = COMPLETIONS if number % 4 < 2 else "/generate"
            writer.write(post({"model": "m", "prompt": "x", "stream": stream}, path))
            if stream and chance.random() < 0.5:
                await asyncio.wait_for(reader.readuntil(b"data:"), ALIVE_S)
            await until(partial(has_asked, engine, asked + 1))
            await closed(writer)
            await until(partial(has_left, engine, number + 1))
        await until(lambda: gateway.instance(engine).load.inflight == 0)
        assert gateway.instance(engine).health.serving
