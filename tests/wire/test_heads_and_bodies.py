"""The one grammar: what is read, what is refused, and that nothing at all makes it fall over."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.wire.body import Chunked, decoder
from vllmdeploy.wire.chunks import chunk
from vllmdeploy.wire.faults import Malformed, NotHttp
from vllmdeploy.wire.head import CHUNKED, UNTIL_CLOSE, parse_answer, parse_request
from vllmdeploy.wire.reader import MessageReader
from vllmdeploy.wire.write import answer_head, request_head

GOOD = (
    b"POST /v1/completions?a=b HTTP/1.1\r\nHost: gw:8000\r\nContent-Length: 2\r\nX-A: 1 \r\n\r\n{}"
)


def read(data: bytes, pieces: int = 1) -> tuple[str, bytes]:
    """Feeds the bytes in pieces of one size and returns the target and the whole body."""
    reader = MessageReader()
    head = None
    body = b""
    size = max(1, len(data) // pieces)
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
        if head is None:
            head = reader.head(parse_request)
        if head is not None:
            body += reader.body()
    assert head is not None
    assert reader.complete
    return f"{head.method} {head.path}?{head.query}", body


@pytest.mark.parametrize("pieces", [1, 2, len(GOOD)])
def test_a_request_reads_the_same_however_it_is_cut(pieces: int) -> None:
    assert read(GOOD, pieces) == ("POST /v1/completions?a=b", b"{}")


def test_a_chunked_request_reads_the_same_byte_by_byte() -> None:
    data = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4;ext=1\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: t\r\n\r\n"
    )
    assert read(data) == read(data, len(data)) == ("POST /x?", b"Wikipedia")


def _with(field: bytes, *, start: bytes = b"POST /v1/completions HTTP/1.1") -> bytes:
    return start + b"\r\nHost: gw\r\n" + field + b"\r\n\r\n"


SMUGGLING = {
    "length and coding": _with(b"Content-Length: 3\r\nTransfer-Encoding: chunked"),
    "coding and length": _with(b"Transfer-Encoding: chunked\r\nContent-Length: 3"),
    "two lengths": _with(b"Content-Length: 3\r\nContent-Length: 4"),
    "two equal lengths": _with(b"Content-Length: 3\r\nContent-Length: 3"),
    "list of lengths": _with(b"Content-Length: 3, 3"),
    "signed length": _with(b"Content-Length: +3"),
    "negative length": _with(b"Content-Length: -3"),
    "hexadecimal length": _with(b"Content-Length: 0x3"),
    "length with an underscore": _with(b"Content-Length: 1_0"),
    "empty length": _with(b"Content-Length:"),
    "length beyond all bounds": _with(b"Content-Length: " + b"9" * 30),
    "two codings": _with(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "coding list": _with(b"Transfer-Encoding: gzip, chunked"),
    "coding xchunked": _with(b"Transfer-Encoding: xchunked"),
    "coding after vertical tab": _with(b"Transfer-Encoding: \x0bchunked"),
    "coding in HTTP/1.0": _with(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"),
    "space before colon": _with(b"Transfer-Encoding : chunked"),
    "tab before colon": _with(b"Content-Length\t: 3"),
    "folded field": _with(b"X-A: 1\r\n chunked"),
    "folded first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "bare line feed": b"GET / HTTP/1.1\nHost: a\n\n",
    "one bare line feed": b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
    "bare carriage return": b"GET / HTTP/1.1\r\nHost: a\rX: 1\r\n\r\n",
    "NUL in a value": _with(b"X-A: a\x00b"),
    "NUL in a name": _with(b"X-\x00A: ab"),
    "no colon": _with(b"X-A"),
    "no name": _with(b": value"),
    "name with a space": _with(b"X A: value"),
    "two hosts": _with(b"Host: other"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "host with a path": b"GET / HTTP/1.1\r\nHost: x/v1?\r\n\r\n",
    "host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "absolute form": b"GET http://other/v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form": b"CONNECT other:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /v1#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash": b"GET /v1\\models HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw UTF-8 target": "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab between": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower case method": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "two keys": _with(b"Authorization: Bearer a\r\nAuthorization: Bearer b"),
    "a thousand fields": _with(b"\r\n".join(b"X-%d: 1" % i for i in range(1000))),
    "a head without end": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000,
}


@pytest.mark.parametrize("name", SMUGGLING)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_what_two_readers_could_read_differently_is_refused(name: str, one_by_one: bool) -> None:
    data = SMUGGLING[name][:66_000]
    with pytest.raises(Malformed) as refused:
        read(data, len(data) if one_by_one and len(data) < 5000 else 1)
    assert refused.value.status in (400, 431)


@pytest.mark.parametrize(
    "wrong",
    [
        *(b"g\r\n", b"-1\r\n", b"0x1\r\nA\r\n", b"1 2\r\n", b"1\nA\n", b"1\r\nAB\r\n", b"\r\n"),
        *(
            b"fffffffff\r\n",
            b"1;\x00\r\nA\r\n",
            b"1" * 300,
            b"0\r\nA B: 1\r\n\r\n",
            b"0\r\n: 1\r\n",
        ),
    ],
)
def test_broken_chunks_are_refused(wrong: bytes) -> None:
    with pytest.raises(Malformed):
        Chunked().decode(wrong)


def test_a_trailer_without_end_is_refused() -> None:
    chunks = Chunked()
    chunks.decode(b"0\r\n")
    for _ in range(500):
        chunks.decode(b"X: 0123456789\r\n")
    with pytest.raises(Malformed, match="too long"):
        chunks.decode(b"X: 0123456789\r\n" * 100)


def test_what_follows_a_body_is_kept_for_the_next_request() -> None:
    reader = MessageReader()
    reader.feed(GOOD + GOOD)
    for _ in range(2):
        head = reader.head(parse_request)
        assert head is not None
        assert head.path == "/v1/completions"
        assert (reader.body(), reader.complete) == (b"{}", True)
        reader.renew()
    assert reader.untouched


def _answer(text: bytes) -> tuple[int, int, bool]:
    head = parse_answer(text, len(text))
    return head.status, head.length, head.keep_alive


def test_the_length_of_an_answer_is_known_or_chunked_or_until_close() -> None:
    assert _answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n") == (200, 5, True)
    assert _answer(b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n") == (200, CHUNKED, True)
    assert _answer(b"HTTP/1.1 200 OK\r\n\r\n") == (200, UNTIL_CLOSE, False)
    assert _answer(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n") == (200, 5, False)
    assert _answer(b"HTTP/1.1 204 No\r\nConnection: close\r\n\r\n") == (204, 0, False)


def test_fields_of_one_connection_do_not_pass_to_the_next() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: x-own, close\r\nX-Own: 1\r\nKeep-Alive: 5\r\n"
    head += b"Upgrade: h2c\r\nTrailer: t\r\nContent-Length: 0\r\nX-Ours: 2\r\n\r\n"
    assert parse_answer(head, len(head)).lines == (b"X-Ours: 2",)


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\n\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
def test_what_is_not_an_answer_is_said_to_be_none(wrong: bytes) -> None:
    with pytest.raises(NotHttp):
        parse_answer(wrong, len(wrong))


def test_heads_are_written_as_they_are_read() -> None:
    head = answer_head(200, [(b"a", b"1")], length=2, chunked=False, close=True)
    assert head == b"HTTP/1.1 200 OK\r\na: 1\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
    head = request_head("POST", "/x", "h:1", [(b"content-length", b"2")])
    assert head == b"POST /x HTTP/1.1\r\nhost: h:1\r\ncontent-length: 2\r\n\r\n"
    assert parse_request(head, len(head)).length == 2
    assert chunk(b"abc") == b"3\r\nabc\r\n"


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 50))
def test_chunks_carry_any_bytes_however_they_are_cut(pieces: list[bytes], size: int) -> None:
    data = b"".join(chunk(piece) for piece in pieces if piece) + b"0\r\n\r\nnext"
    chunks = decoder(CHUNKED)
    found = b"".join(chunks.decode(data[at : at + size]) for at in range(0, len(data) - 4, size))
    assert found == b"".join(pieces)
    assert chunks.done


@pytest.mark.parametrize("size", [1, 15, 16, 255, 256, 4095, 4096, 65536, 100_000])
@pytest.mark.parametrize("line", [b"%x", b"%X", b"0%x", b"%x;a=b", b"%x "])
def test_a_chunk_of_any_size_is_read_whole_or_in_two(size: int, line: bytes) -> None:
    whole = line % size + b"\r\n" + b"x" * size + b"\r\n"
    if line == b"%x":
        assert whole == chunk(b"x" * size)
    chunks = Chunked()
    for cut in (0, 1, 2, len(whole) // 2, len(whole) - 1):
        assert chunks.decode(whole[:cut]) + chunks.decode(whole[cut:]) == b"x" * size
    assert chunks.decode(whole + whole) == b"x" * 2 * size
    assert not chunks.done
    assert chunks.decode(b"0\r\n\r\n") == b""
    assert chunks.done


def test_what_only_looks_like_one_chunk_is_refused_or_waited_for() -> None:
    with pytest.raises(Malformed):
        Chunked().decode(b"4\r\nabcdX\n")
    chunks = Chunked()
    assert chunks.decode(b"5\r\nab\r\n") == b"ab\r\n"  # nine bytes, as a chunk of four has
    assert chunks.decode(b"c\r\n0\r\n\r\n") == b"c"
    assert chunks.done


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _survives(data)
    _survives(b"POST / HTTP/1.1\r\nHost: a\r\n" + data)
    _survives(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)


def test_a_hundred_thousand_broken_requests_are_read_or_refused() -> None:
    chance = random.Random(20261121)
    seeds = [GOOD, *(data for data in SMUGGLING.values() if len(data) < 300)]
    seeds.append(_with(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n")
    for _ in range(100_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.choice(b"\r\n :\t\x000ACGchunked;,-+_\xff")
                case 1:
                    del data[at : at + chance.randint(1, 8)]
                case 2:
                    data[at:at] = chance.choice(
                        [b"\r\n", b"\n", b"0\r\n\r\n", b"Content-Length: 9"]
                    )
                case _:
                    data[at:at] = data[: chance.randint(1, 20)]
            if not data:
                break
        _survives(bytes(data))


def _survives(data: bytes) -> None:
    reader = MessageReader()
    reader.feed(data)
    try:
        head = reader.head(parse_request)
        if head is None:
            return
        reader.body()
    except Malformed:
        return
    # Whatever is accepted says its length once, and in one way.
    sent = data[: data.find(b"\r\n\r\n")].lower()
    assert sent.count(b"\r\ncontent-length:") + sent.count(b"\r\ntransfer-encoding:") <= 1
    assert sent.count(b"\n") == sent.count(b"\r\n")
