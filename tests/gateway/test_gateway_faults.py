"""What a client sees of instances that fail: nothing, where another one can answer."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from dataclasses import replace
from time import monotonic

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
from vllmdeploy.routing.states import State

STREAM = {"model": "m", "prompt": "hello", "stream": True}
CHUNKED = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_request_for_a_closed_port_is_answered_by_another_instance() -> None:
    async with engines(2) as (gone, alive), started([gone, alive]) as gateway:
        await gone.stop()
        replies = [await gateway.ask() for _ in range(6)]
        assert [one.status for one in replies] == [200] * 6
        assert len(alive.asked) == 6
        assert gateway.instance(gone).health.state is State.DOWN
        assert gateway.running.gateway.dispatcher.retries == {"refused": 1}


async def test_an_instance_is_ejected_after_three_errors_that_no_client_sees() -> None:
    async with engines(3, "500", "ok") as found, started(found) as gateway:
        replies = [await gateway.ask() for _ in range(20)]
        assert [one.status for one in replies] == [200] * 20
        assert len(found[0].asked) == 3
        assert gateway.instance(found[0]).health.state is State.EJECTED


async def test_errors_of_every_instance_are_told_as_the_last_one_said_it() -> None:
    async with engines(2, "500") as found, started(found) as gateway:
        answer = await gateway.ask()
        assert answer.status == 500
        assert json.loads(answer.body)["error"]["message"] == "status 500"
        assert [len(one.asked) for one in found] == [1, 1]


async def test_a_full_instance_is_passed_over_and_not_ejected() -> None:
    async with engines(2, "503", "ok") as (full, free), started([full, free]) as gateway:
        replies = [await gateway.ask() for _ in range(6)]
        assert [one.status for one in replies] == [200] * 6
        assert len(free.asked) == 6
        assert full.asked
        assert gateway.instance(full).health.serving


async def test_where_all_are_full_the_client_is_told_to_come_back() -> None:
    async with engines(2, "503") as found, started(found) as gateway:
        answer = await gateway.ask()
        assert answer.status == 503
        assert int(answer.fields["retry-after"]) >= 1
        assert all(gateway.instance(one).health.serving for one in found)


@pytest.mark.parametrize("status", ["400", "404", "413", "422", "429"])
async def test_what_the_engine_refuses_is_passed_on_and_asked_of_nobody_else(status: str) -> None:
    async with engines(2, status) as found, started(found) as gateway:
        answer = await gateway.ask()
        assert answer.status == int(status)
        assert json.loads(answer.body)["error"]["message"] == f"status {status}"
        assert sum(len(one.asked) for one in found) == 1
        assert all(gateway.instance(one).health.serving for one in found)


@pytest.mark.parametrize(
    "mode", ["reset", "close", "raw:garbage\r\n\r\n", "raw:HTTP/1.1 200 OK\r\n"]
)
async def test_a_connection_lost_before_an_answer_is_asked_again_elsewhere(mode: str) -> None:
    async with engines(2, mode, "ok") as (broken, sound), started([broken, sound]) as gateway:
        replies = [await gateway.ask() for _ in range(3)]
        assert [one.status for one in replies] == [200] * 3
        assert broken.asked
        assert len(sound.asked) == 3


async def test_a_short_answer_that_is_cut_is_asked_for_again() -> None:
    async with engines(2, "cut", "ok") as (cut, sound), started([cut, sound]) as gateway:
        replies = [await gateway.ask() for _ in range(3)]
        assert [one.status for one in replies] == [200] * 3
        assert all(one.whole and json.loads(one.body)["choices"] for one in replies)
        assert cut.asked


@pytest.mark.parametrize(
    "mode",
    [
        *("cut", "reset", f'raw:{CHUNKED}6\r\n{{"a":1\r\n', f'raw:{CHUNKED}40\r\n{{"a":1'),
        'raw:HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n{"a":1',
    ],
)
async def test_half_an_answer_is_never_told_as_a_whole_one(mode: str) -> None:
    async with engines(1, mode) as found, started(found) as gateway:
        raw = await exchange(gateway.port, post({"model": "m", "prompt": "hello"}))
        assert not raw.startswith(b"HTTP/1.1 200") or not reply(raw).whole


async def test_a_cut_answer_without_a_length_is_a_reset_to_a_client_of_http_1_0() -> None:
    """Such a client takes an orderly end of the connection for the end of the answer."""
    async with engines(1, f'raw:{CHUNKED}40\r\n{{"a":1') as found, started(found) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post({"model": "m", "prompt": "x"}).replace(b"HTTP/1.1", b"HTTP/1.0"))
        try:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), ALIVE_S)
        finally:
            await closed(writer)


@pytest.mark.parametrize("path", ["/generate", "/batch_generate"])
async def test_the_simple_routes_are_answered_by_another_instance(path: str) -> None:
    asked = {"prompt": "x"} if path == "/generate" else {"prompts": ["x", "y"]}
    async with engines(2, "cut", "ok") as found, started(found) as gateway:
        replies = [await gateway.ask(asked, path) for _ in range(2)]
        assert [one.status for one in replies] == [200] * 2
        assert all(b"x!" in one.body and b'"error"' not in one.body for one in replies)
        assert found[0].asked


@pytest.mark.parametrize("mode", ["cut", "no_done", "error_event"])
async def test_a_broken_stream_of_the_simple_route_says_so(mode: str) -> None:
    async with engines(1, mode) as found, started(found) as gateway:
        answer = await gateway.ask({"prompt": "x", "stream": True}, "/generate")
        assert answer.whole
        assert answer.body.count(b'"error"') == 1


async def test_a_stream_that_is_cut_ends_with_an_error_event() -> None:
    async with engines(1, "cut") as found, started(found) as gateway:
        answer = await gateway.ask(STREAM)
        *_, last, end = answer.body.decode().split("\n\n")
        assert (answer.status, end) == (200, "")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stream_broken"
        assert b"[DONE]" not in answer.body


async def test_a_stream_that_ends_before_its_end_ends_with_an_error_event() -> None:
    async with engines(1, "no_done") as found, started(found) as gateway:
        answer = await gateway.ask(STREAM)
        assert answer.whole
        assert b'"stream_broken"' in answer.body.split(b"\n\n")[-2]


async def test_an_error_event_of_the_engine_is_passed_on_once() -> None:
    async with engines(1, "error_event") as found, started(found) as gateway:
        answer = await gateway.ask(STREAM)
        assert answer.body.endswith(b'data: {"error": {"message": "engine died"}}\n\n')
        assert answer.body.count(b'"error"') == 1


@pytest.mark.parametrize(("mode", "stream"), [("stall", False), ("stall", True), ("hang", True)])
async def test_an_engine_stops_working_for_a_client_that_left(mode: str, stream: bool) -> None:
    async with engines(1, mode) as (engine,), started([engine]) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post({"model": "m", "prompt": "hello", "stream": stream}))
        if mode == "hang":
            await asyncio.wait_for(reader.readuntil(b"data:"), ALIVE_S)
        await until(lambda: len(engine.asked) == 1)
        await closed(writer)
        await until(lambda: engine.open == 0)
        await until(lambda: gateway.instance(engine).load.inflight == 0)
        assert gateway.instance(engine).health.serving


async def test_a_kept_connection_that_the_engine_closes_is_no_error() -> None:
    async with engines(1) as (engine,), started([engine]) as gateway:
        engine.mode = lambda number: "close" if number == 2 else "ok"
        replies = [await gateway.ask() for _ in range(3)]
        assert [one.status for one in replies] == [200] * 3
        assert len(engine.asked) == 4


async def test_a_request_that_kills_its_instances_is_not_led_through_all_of_them() -> None:
    async with engines(5, "reset") as found, started(found) as gateway:
        answer = await gateway.ask()
        assert answer.status == 502
        assert sum(len(one.asked) for one in found) == QUIET.poisoned_instances_max


async def test_a_request_that_may_have_had_an_effect_is_not_sent_twice() -> None:
    async with engines(2, "reset") as found, started(found) as gateway:
        answer = await gateway.ask({"model": "m", "input": "hello"}, "/v1/responses")
        assert answer.status == 502
        assert sum(len(one.asked) for one in found) == 1


async def test_an_instance_that_says_nothing_in_time_loses_the_request_to_another() -> None:
    thresholds = replace(QUIET, first_byte_timeout_s=0.2)
    async with (
        engines(2, "stall", "ok") as (silent, sound),
        started([silent, sound], thresholds=thresholds) as gateway,
    ):
        replies = [await gateway.ask() for _ in range(2)]
        assert [one.status for one in replies] == [200] * 2
        assert silent.asked
        await until(lambda: silent.left == len(silent.asked))


@pytest.mark.parametrize("status", ["301", "302", "307"])
async def test_a_redirect_is_followed_by_nobody(status: str) -> None:
    mode = f"raw:HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with engines(1, mode) as (engine,), started([engine]) as gateway:
        answer = await gateway.ask()
        assert answer.status == 502
        assert "location" not in answer.fields


@pytest.mark.parametrize(
    "answer",
    [
        *("content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",),
        *("content-length: 2\r\ncontent-length: 3\r\n\r\n{}x", "x: y\n\r\n\r\n"),
        *("x : y\r\ncontent-length: 0\r\n\r\n", f"x: {'y' * 70_000}\r\n\r\n"),
    ],
)
async def test_an_answer_that_could_be_read_in_two_ways_is_none(answer: str) -> None:
    mode = f"raw:HTTP/1.1 200 OK\r\n{answer}"
    async with engines(2, mode, "ok") as (unclear, sound), started([unclear, sound]) as gateway:
        replies = [await gateway.ask() for _ in range(3)]
        assert [one.status for one in replies] == [200] * 3
        assert all(json.loads(one.body)["choices"] for one in replies)
        assert unclear.asked


async def test_bytes_after_an_answer_are_nobodys_answer() -> None:
    one = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    async with engines(1, f"raw:{one}{{}}{one}[]") as (engine,), started([engine]) as gateway:
        replies = [await gateway.ask() for _ in range(10)]
        assert [(reply.status, reply.body) for reply in replies] == [(200, b"{}")] * 10


async def test_a_client_that_leaves_the_queue_takes_no_place() -> None:
    async with engines(1, "gate") as (engine,), started([engine], places=1) as gateway:
        first = asyncio.ensure_future(gateway.ask())
        await until(lambda: len(engine.asked) == 1)
        room = gateway.running.fleet.groups["m"].room
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(post({"model": "m", "prompt": "left"}))
        await until(lambda: len(room) == 1)
        await closed(writer)
        await until(lambda: len(room) == 0)
        last = asyncio.ensure_future(gateway.ask())
        await until(lambda: len(room) == 1)
        engine.gate.set()
        replies = await asyncio.wait_for(asyncio.gather(first, last), ALIVE_S)
        assert [one.status for one in replies] == [200] * 2
        assert len(engine.asked) == 2
        assert gateway.instance(engine).load.inflight == 0


async def test_a_drained_instance_ends_what_it_has_and_gets_nothing_new() -> None:
    async with engines(2) as (drained, other), started([drained, other]) as gateway:
        drained.mode = "gate"
        pending = [asyncio.ensure_future(gateway.ask()) for _ in range(2)]
        await until(lambda: len(drained.asked) == 1 and len(other.asked) == 1)
        instance = gateway.instance(drained)
        gateway.running.fleet.changed(instance, instance.health.drain(monotonic()))
        replies = [await gateway.ask() for _ in range(4)]
        drained.gate.set()
        replies += await asyncio.wait_for(asyncio.gather(*pending), ALIVE_S)
        assert [one.status for one in replies] == [200] * 6
        assert (len(drained.asked), len(other.asked)) == (1, 5)


async def test_stopping_lets_a_request_end() -> None:
    thresholds = replace(QUIET, drain_timeout_s=ALIVE_S)
    async with engines(1, "gate") as (engine,), started([engine], thresholds=thresholds) as gateway:
        pending = asyncio.ensure_future(gateway.ask(STREAM))
        await until(lambda: len(engine.asked) == 1)
        gateway.running.stop()
        await until(lambda: gateway.running.gateway.draining)
        engine.gate.set()
        answer = await asyncio.wait_for(pending, ALIVE_S)
        assert answer.whole
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_sigterm_lets_a_stream_end_and_then_the_process_ends() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    async with engines(1, "gate") as (engine,):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", f"127.0.0.1:{port}"),
            *("--upstream", engine.url, "--no-canary"),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            await _line_with(process.stderr, b"listening")
            await _line_with(process.stderr, b"ready")
            pending = asyncio.ensure_future(exchange(port, post(STREAM, COMPLETIONS)))
            await until(lambda: len(engine.asked) == 1)
            process.send_signal(signal.SIGTERM)
            await _line_with(process.stderr, b"draining")
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", port)
            engine.gate.set()
            answer = reply(await asyncio.wait_for(pending, ALIVE_S))
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert answer.whole
            await asyncio.wait_for(process.communicate(), ALIVE_S)
            assert process.returncode == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def _line_with(stream: asyncio.StreamReader, word: bytes) -> None:
    while word not in (line := await asyncio.wait_for(stream.readline(), ALIVE_S)):
        assert line, f"the gateway ended before it said {word.decode()}"
