"""What is no honest request never reaches an engine; what an engine says comes back as it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest

from tests.gateway.starting import (
    ALIVE_S,
    closed,
    engines,
    exchange,
    post,
    reply,
    started,
    unchunked,
    until,
)
from vllmdeploy.wire.limits import ClientLimits

BODY = b'{"model":"m","prompt":"x"}'
LENGTH = b"content-length: %d" % len(BODY)
CHUNKED = b"transfer-encoding: chunked"
FIRST = b"POST /v1/completions HTTP/1.1"
HOST = b"host: gateway"
NEXT = b"POST /v1/completions HTTP/1.1\r\nhost: g\r\n%b\r\n\r\n%b" % (LENGTH, BODY)
AS_CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)


def message(*lines: bytes, body: bytes = BODY) -> bytes:
    return b"\r\n".join([*lines, b"", b""]) + body


SMUGGLED = {
    "length and chunks": message(FIRST, HOST, LENGTH, CHUNKED, body=b"0\r\n\r\n" + NEXT),
    "chunks and length": message(FIRST, HOST, CHUNKED, LENGTH, body=b"0\r\n\r\n" + NEXT),
    "two lengths": message(FIRST, HOST, LENGTH, b"content-length: 0", body=BODY + NEXT),
    "one length twice": message(FIRST, HOST, LENGTH, LENGTH),
    "a list of lengths": message(FIRST, HOST, b"content-length: 26, 26"),
    "a length with a sign": message(FIRST, HOST, b"content-length: +26"),
    "a negative length": message(FIRST, HOST, b"content-length: -1"),
    "a hexadecimal length": message(FIRST, HOST, b"content-length: 0x1a"),
    "an empty length": message(FIRST, HOST, b"content-length:"),
    "a length of 40 digits": message(FIRST, HOST, b"content-length: " + b"9" * 40),
    "an unknown coding": message(FIRST, HOST, b"transfer-encoding: xchunked"),
    "two codings": message(FIRST, HOST, b"transfer-encoding: gzip, chunked", body=AS_CHUNK),
    "a coding twice": message(FIRST, HOST, CHUNKED, CHUNKED, body=AS_CHUNK + b"0\r\n\r\n"),
    "chunks in HTTP/1.0": message(
        b"POST /v1/completions HTTP/1.0", HOST, CHUNKED, body=AS_CHUNK + b"0\r\n\r\n"
    ),
    "a bare line feed": message(FIRST + b"\n" + HOST, LENGTH),
    "only bare line feeds": message(FIRST, HOST, LENGTH).replace(b"\r\n", b"\n"),
    "a bare carriage return": message(FIRST, HOST + b"\rx: y", LENGTH),
    "a folded field": message(FIRST, HOST, b"x-a: b\r\n c", LENGTH),
    "a folded coding": message(FIRST, HOST, b"transfer-encoding:\r\n chunked", LENGTH),
    "a NUL in a value": message(FIRST, HOST, b"x-a: b\x00c", LENGTH),
    "a NUL in a name": message(FIRST, HOST, b"x\x00a: b", LENGTH),
    "a space before a colon": message(FIRST, HOST, b"content-length : 26"),
    "a tab before a colon": message(FIRST, HOST, b"transfer-encoding\t: chunked", LENGTH),
    "a field without a colon": message(FIRST, HOST, b"nonsense", LENGTH),
    "a field without a name": message(FIRST, HOST, b": value", LENGTH),
    "1,000 fields": message(FIRST, HOST, *[b"x-%d: y" % n for n in range(1000)], LENGTH),
    "a head of a megabyte": message(FIRST, HOST, b"x-a: " + b"b" * (1 << 20), LENGTH),
    "absolute form": message(b"POST http://127.0.0.1:1/v1/completions HTTP/1.1", HOST, LENGTH),
    "asterisk form": message(b"OPTIONS * HTTP/1.1", HOST),
    "authority form": message(b"CONNECT 127.0.0.1:22 HTTP/1.1", HOST),
    "no Host": message(FIRST, LENGTH),
    "two Hosts": message(FIRST, HOST, b"host: other", LENGTH),
    "a Host with a path": message(FIRST, b"host: gateway/admin", LENGTH),
    "a Host with a user": message(FIRST, b"host: a@gateway", LENGTH),
    "a Host with a space": message(FIRST, b"host: gate way", LENGTH),
    "a fragment": message(b"POST /v1/completions#x HTTP/1.1", HOST, LENGTH),
    "dots in the path": message(b"POST /v1/models/../completions HTTP/1.1", HOST, LENGTH),
    "a coded path": message(b"POST /v1%2fcompletions HTTP/1.1", HOST, LENGTH),
    "a doubled slash": message(b"POST //v1/completions HTTP/1.1", HOST, LENGTH),
    "two spaces": message(b"POST  /v1/completions HTTP/1.1", HOST, LENGTH),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": message(b"POST /v1/completions HTTP/1.2", HOST, LENGTH),
    "a method in lower case": message(b"post /v1/completions HTTP/1.1", HOST, LENGTH),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a chunk longer than its size": message(FIRST, HOST, CHUNKED, body=b"1\r\nxyz\r\n0\r\n\r\n"),
    "a chunk of a negative size": message(FIRST, HOST, CHUNKED, body=b"-1\r\nx\r\n0\r\n\r\n"),
    "a chunk of a size in 0x": message(FIRST, HOST, CHUNKED, body=b"0x1\r\nx\r\n0\r\n\r\n"),
    "a chunk of 17 digits": message(FIRST, HOST, CHUNKED, body=b"1" * 17 + b"\r\nx\r\n"),
    "a chunk that ends in a line feed": message(FIRST, HOST, CHUNKED, body=b"1\nx\n0\n\n"),
    "a NUL in an extension": message(FIRST, HOST, CHUNKED, body=b"1;\x00\r\nx\r\n0\r\n\r\n"),
    "a broken trailer": message(FIRST, HOST, CHUNKED, body=b"0\r\nx y\r\n\r\n" + NEXT),
}
# Well formed, and no route: the connection is kept, so the client has to say that it ends.
CLOSES = ("dots in the path", "a coded path", "a doubled slash")


@pytest.mark.parametrize("name", SMUGGLED)
async def test_what_two_readers_could_read_differently_is_refused(name: str) -> None:
    data = SMUGGLED[name]
    if name in CLOSES:
        data = data.replace(HOST, HOST + b"\r\nconnection: close")
    async with engines(1) as (engine,), started([engine]) as gateway:
        raw = await exchange(gateway.port, data)
        assert reply(raw).status in (400, 404, 413, 431)
        assert raw.count(b"HTTP/1.1 ") == 1
        assert not engine.asked
        assert await gateway.healthy()


LIMIT = 100
SMALL = ClientLimits(body=LIMIT, linger_s=0.5)
LONG = b"x" * (LIMIT + 1)
TOO_LONG = {
    "as its length says": message(FIRST, HOST, b"content-length: 101", body=LONG),
    "as its length says, before it comes": message(
        FIRST, HOST, b"content-length: 99999999999", body=b""
    ),
    "and asks first": message(
        FIRST, HOST, b"content-length: 101", b"expect: 100-continue", body=b""
    ),
    "in one chunk": message(FIRST, HOST, CHUNKED, body=b"65\r\n" + LONG + b"\r\n0\r\n\r\n"),
    "in many chunks": message(FIRST, HOST, CHUNKED, body=b"1\r\nx\r\n" * 200 + b"0\r\n\r\n"),
    "in chunks without an end": message(FIRST, HOST, CHUNKED, body=b"1\r\nx\r\n" * 200),
}


@pytest.mark.parametrize("how", TOO_LONG)
async def test_a_body_over_the_limit_is_refused(how: str) -> None:
    async with engines(1) as (engine,), started([engine], limits=SMALL) as gateway:
        answer = reply(await exchange(gateway.port, TOO_LONG[how]))
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["code"] == "body_too_large"
        assert not engine.asked
        assert not gateway.running.gateway.dispatcher.active


async def test_what_follows_a_body_of_a_false_length_is_no_part_of_it() -> None:
    async with engines(1) as (engine,), started([engine], limits=SMALL) as gateway:
        raw = await exchange(gateway.port, message(FIRST, HOST, LENGTH, body=BODY + LONG * 50))
        assert [one.body for one in engine.asked] == [BODY]
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert raw.count(b"HTTP/1.1 4") == 1


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = BODY + b" " * (LIMIT - len(BODY))
    async with engines(1) as (engine,), started([engine], limits=SMALL) as gateway:
        assert reply(await exchange(gateway.port, post(body))).status == 200
        assert engine.asked[0].body == body


async def test_a_request_that_comes_byte_by_byte_is_read_as_if_whole() -> None:
    async with engines(1) as (engine,), started([engine]) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for byte in message(FIRST, HOST, b"connection: close", CHUNKED, body=AS_CHUNK):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        raw = await asyncio.wait_for(reader.read(), ALIVE_S)
        await closed(writer)
        assert reply(raw).status == 200
        assert engine.asked[0].body == BODY


async def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async with engines(1) as (engine,), started([engine]) as gateway:
        prompts = [f"p{number}" for number in range(5)]
        asked = [post({"model": "m", "prompt": one}, close=False) for one in prompts[:-1]]
        raw = await exchange(
            gateway.port, b"".join([*asked, post({"model": "m", "prompt": prompts[-1]})])
        )
        said = [raw.index(b'"%b!"' % one.encode()) for one in prompts]
        assert said == sorted(said)
        assert raw.count(b"HTTP/1.1 200 ") == 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["ok", "bytewise"])
async def test_the_bytes_of_an_answer_are_those_of_the_engine(mode: str, stream: bool) -> None:
    asked = {"model": "m", "prompt": "grüße 😀", "stream": stream}
    async with engines(1, mode) as (engine,), started([engine]) as gateway:
        direct = await _direct(engine.port, post(asked), stream=stream)
        answer = await gateway.ask(asked)
        assert answer.status == 200
        assert answer.whole
        assert answer.body == direct
        assert engine.asked[0].body == engine.asked[1].body


async def _direct(port: int, request: bytes, *, stream: bool) -> bytes:
    raw = await exchange(port, request)
    _, _, body = raw.partition(b"\r\n\r\n")
    return unchunked(body) if stream else body


async def test_nothing_of_a_client_but_its_request_reaches_the_engine() -> None:
    secret = (b"authorization: Bearer secret", b"x-api-key: secret2", b"cookie: secret3")
    other = (b"x-forwarded-for: 1.2.3.4", b"x-request-id: mine", b"connection: close")
    async with engines(1) as (engine,), started([engine]) as gateway:
        answer = reply(await exchange(gateway.port, message(FIRST, HOST, *secret, *other, LENGTH)))
        assert answer.status == 200
        assert answer.fields["x-request-id"] == "mine"
        sent = engine.asked[0].fields
        assert not set(sent) & {"authorization", "x-api-key", "cookie", "x-forwarded-for"}
        assert sent["host"] == f"127.0.0.1:{engine.port}"


async def test_the_gateway_outlives_ten_thousand_requests_of_random_bytes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = random.Random(20)
    async with engines(1) as (engine,), started([engine]) as gateway:
        for _ in range(100):
            await asyncio.gather(*(_throw(gateway.port, _hostile(chance)) for _ in range(100)))
        assert await gateway.healthy()
        assert (await gateway.ask()).status == 200
        dispatcher = gateway.running.gateway.dispatcher
        await until(lambda: dispatcher.active == 0)
        assert gateway.instance(engine).health.serving
    ours = [one for one in caplog.records if one.name == "vllmdeploy.gateway"]
    assert not [one.getMessage() for one in ours if one.levelname == "ERROR"]


def _hostile(chance: random.Random) -> bytes:
    """Noise, or an honest request with some bytes changed, lost or doubled."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(1, 300))
    data = bytearray(chance.choice([*SMUGGLED.values(), NEXT])[:2000])
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data))
        match chance.randrange(3):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randrange(1, 20)]
            case _:
                data[at:at] = data[at : at + 20]
        if not data:
            break
    return bytes(data)


async def _throw(port: int, data: bytes) -> None:
    """Whatever comes back first, or nothing: the sending side ends, as that of one who left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):  # a reset is an end too
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), ALIVE_S)
    finally:
        await closed(writer)
