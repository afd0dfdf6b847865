"""Who waits for a busy instance goes in the order that the scheduling and the header fields say,
and who reads slowly keeps the engine waiting, not the gateway's memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.gateway.starting import (
    ALIVE_S,
    COMPLETIONS,
    QUIET,
    Reply,
    Started,
    closed,
    engines,
    exchange,
    post,
    reply,
    started,
    until,
)
from tests.support.upstream import FakeEngine

STREAM = {"model": "m", "stream": True}
# Name, header fields, tokens; in the order in which they come.
WAITING = (
    ("a", ["x-priority: 5"], 10),
    ("b", ["x-priority: -1"], 4000),
    ("c", ["x-priority: 3", "x-deadline-ms: 50000"], 2000),
    ("d", ["x-priority: 4", "x-deadline-ms: 40000"], 100),
)
ORDERS = {
    "fifo": "abcd",
    "priority": "bcda",
    "slo_aware": "dcab",
    "cost_optimized": "adcb",
    "adaptive": "cdab",
}
KEEPS_DEADLINES = ("slo_aware", "adaptive")


Pending = asyncio.Future[bytes]


def asking(gateway: Started, name: str, fields: Sequence[str] = (), tokens: int = 5) -> Pending:
    body = {"model": "m", "prompt": name, "max_tokens": tokens}
    return asyncio.ensure_future(exchange(gateway.port, post(body, fields=fields)))


async def answered(pending: Sequence[Pending]) -> list[Reply]:
    return [reply(raw) for raw in await asyncio.wait_for(asyncio.gather(*pending), ALIVE_S)]


async def occupied(gateway: Started, engine: FakeEngine) -> Pending:
    """The only place is taken until the engine's gate opens."""
    first = asking(gateway, "first")
    await until(lambda: len(engine.asked) == 1)
    return first


def waiting(gateway: Started) -> int:
    return len(gateway.running.fleet.groups["m"].room)


def is_waiting(gateway: Started, count: int) -> bool:
    return waiting(gateway) == count


@pytest.mark.parametrize("scheduling", ORDERS)
async def test_those_who_wait_go_in_the_order_of_the_scheduling(scheduling: str) -> None:
    async with (
        engines(1, "gate") as (engine,),
        started([engine], places=1, scheduling=scheduling) as gateway,
    ):
        pending = [await occupied(gateway, engine)]
        for count, (name, fields, tokens) in enumerate(WAITING, 1):
            pending.append(asking(gateway, name, fields, tokens))
            await until(partial(is_waiting, gateway, count))
        engine.gate.set()
        assert [one.status for one in await answered(pending)] == [200] * 5
        assert "".join(one.json["prompt"] for one in engine.asked[1:]) == ORDERS[scheduling]


async def test_the_bodys_priority_counts_where_no_field_gives_one() -> None:
    async with (
        engines(1, "gate") as (engine,),
        started([engine], places=1, scheduling="priority") as gateway,
    ):
        pending = [await occupied(gateway, engine), asking(gateway, "plain")]
        await until(lambda: waiting(gateway) == 1)
        body = {"model": "m", "prompt": "urgent", "priority": -3}
        pending.append(asyncio.ensure_future(exchange(gateway.port, post(body))))
        await until(lambda: waiting(gateway) == 2)
        engine.gate.set()
        await answered(pending)
        assert [one.json["prompt"] for one in engine.asked] == ["first", "urgent", "plain"]


@pytest.mark.parametrize("scheduling", ORDERS)
@pytest.mark.parametrize("milliseconds", [0, 150])
async def test_who_cannot_be_answered_in_time_is_turned_away_where_deadlines_are_kept(
    scheduling: str, milliseconds: int
) -> None:
    async with (
        engines(1, "gate") as (engine,),
        started([engine], places=1, scheduling=scheduling) as gateway,
    ):
        pending = [await occupied(gateway, engine)]
        late = asking(gateway, "late", [f"x-deadline-ms: {milliseconds}"])
        if scheduling in KEEPS_DEADLINES:
            (answer,) = await answered([late])
            error = json.loads(answer.body)["error"]
            said = {"the deadline cannot be kept", "the deadline has passed"}
            assert (answer.status, error["code"]) == (503, "overloaded")
            assert error["message"] in said
            assert int(answer.fields["retry-after"]) >= 1
        else:
            await until(lambda: waiting(gateway) == 1)
            pending.append(late)
        engine.gate.set()
        assert {one.status for one in await answered(pending)} == {200}
        assert len(engine.asked) == len(pending)


@pytest.mark.parametrize("scheduling", ORDERS)
async def test_a_free_instance_is_given_to_anybody(scheduling: str) -> None:
    async with engines(1) as (engine,), started([engine], scheduling=scheduling) as gateway:
        for fields in (["x-deadline-ms: 0"], ["x-priority: 99"], ["x-priority: -99"]):
            (answer,) = await answered([asking(gateway, "x", fields)])
            assert answer.status == 200


@pytest.mark.parametrize("value", ["", "soon", "1.5", "1e3", "0x10", "٣", "9" * 13, "+1", "1 2"])
@pytest.mark.parametrize("name", ["x-priority", "x-deadline-ms"])
async def test_a_field_that_is_no_number_is_refused(name: str, value: str) -> None:
    async with engines(1) as (engine,), started([engine]) as gateway:
        message = post({"model": "m", "prompt": "x"}, fields=[f"{name}: VALUE"])
        raw = await exchange(gateway.port, message.replace(b"VALUE", value.encode()))
        assert reply(raw).status == 400
        assert engine.asked == []


async def test_a_full_queue_and_too_long_a_wait_are_503_with_a_time_to_come_back() -> None:
    thresholds = replace(QUIET, queue_length=1, queue_timeout_s=0.3)
    async with (
        engines(1, "gate") as (engine,),
        started([engine], places=1, thresholds=thresholds) as gateway,
    ):
        first = await occupied(gateway, engine)
        second = asking(gateway, "second")
        await until(lambda: waiting(gateway) == 1 or second.done())
        third = asking(gateway, "third")
        refused = await answered([second, third])
        assert [one.status for one in refused] == [503, 503]
        assert all(int(one.fields["retry-after"]) >= 1 for one in refused)
        said = {json.loads(one.body)["error"]["message"] for one in refused}
        assert said <= {"waited too long", "the queue is full"}
        engine.gate.set()
        assert [one.status for one in await answered([first])] == [200]
        assert len(engine.asked) == 1


# slow readers

# Far more than the kernel holds of the two connections between engine and client.
EVENT_KIB, EVENTS = 64, 500
STILL_LOOKS = 60


@pytest.mark.parametrize("path", [COMPLETIONS, "/generate"])
async def test_a_client_that_reads_nothing_keeps_the_engine_waiting(path: str) -> None:
    async with engines(1) as (engine,), started([engine]) as gateway:
        engine.events = EVENTS
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post({**STREAM, "prompt": "x" * EVENT_KIB * 1024}, path))
        still = Still(engine)
        await until(still)
        assert 0 < engine.sent < EVENTS
        assert 0 < held(gateway) < 8 * EVENT_KIB * 1024
        raw = b"".join([piece async for piece in pieces(reader)])
        await closed(writer)
        assert reply(raw).whole
        assert raw.count(b"data: {") == EVENTS
        assert b"data: [DONE]\n\n" in raw


def held(gateway: Started) -> int:
    """Bytes that wait in the gateway itself for clients to read."""
    connections: Any = gateway.running._server.connections
    return sum(one._transport.get_write_buffer_size() for one in connections)


async def pieces(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    while piece := await asyncio.wait_for(reader.read(1 << 20), ALIVE_S):
        yield piece


class Still:
    """Whether an engine's stream has stopped: at its end, or for many looks."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._seen = self._looks = 0

    def __call__(self) -> bool:
        sent = self._engine.sent
        self._looks = self._looks + 1 if sent and sent == self._seen else 0
        self._seen = sent
        return sent == EVENTS or self._looks > STILL_LOOKS
