"""A head found again reads in every case as it would on a connection that never saw one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import pytest

from vllmdeploy.wire.faults import Malformed, NotHttp
from vllmdeploy.wire.head import AnswerHead, RequestHead, parse_answer, parse_request
from vllmdeploy.wire.reader import MessageReader

Head = TypeVar("Head", RequestHead, AnswerHead)
REQUEST = b"POST /v1/x?a=b HTTP/1.1\r\nHost: g:1\r\nContent-Length: %b\r\nX-A: 1\r\n\r\n"
SHORT = b"POST /v1/x HTTP/1.1\r\nHost: g\r\ncontent-length:%b\r\n\r\n"
ANSWER = b"HTTP/1.1 %b OK\r\nDate: now\r\nContent-Length: %b\r\nServer: s\r\n\r\n"
DIGITS = (b"0", b"7", b"12", b"007", b"999", b"9" * 18)
NO_LENGTHS = (b"", b"-1", b"+1", b"1 2", b"0x1", b"1,1", b"9" * 19, b"1\n", b"\xb2", b"1\r\nX: 1")


def read(reader: MessageReader, parse: Callable[[bytes, int], Head], raw: bytes) -> object:
    """What a connection makes of a head, or why it refuses it."""
    reader.feed(raw)
    try:
        head = reader.head(parse)
    except (Malformed, NotHttp) as error:
        return repr(error)
    reader.renew()
    return head, reader.waiting


def same_after(parse: Callable[[bytes, int], Head], before: bytes, raw: bytes) -> bool:
    reader = MessageReader()
    read(reader, parse, before)
    return read(reader, parse, raw) == read(MessageReader(), parse, raw)


@pytest.mark.parametrize("form", [REQUEST, SHORT])
@pytest.mark.parametrize("length", DIGITS + NO_LENGTHS)
def test_whatever_stands_for_the_length_reads_as_if_it_were_the_first(
    form: bytes, length: bytes
) -> None:
    assert same_after(parse_request, form % b"5", form % length)
    assert same_after(parse_request, form % b"5", (form % length)[:-3])
    assert same_after(parse_request, form % b"5", form % length + b"{}")


@pytest.mark.parametrize("status", [b"200", b"204", b"304", b"503"])
@pytest.mark.parametrize("length", DIGITS + NO_LENGTHS)
def test_an_answer_without_a_body_has_none_whatever_length_it_gives(
    status: bytes, length: bytes
) -> None:
    for before in (b"0", b"5"):
        assert same_after(parse_answer, ANSWER % (status, before), ANSWER % (status, length))


def test_heads_that_differ_in_their_length_alone_share_their_fields() -> None:
    reader, raws = MessageReader(), [REQUEST % length for length in (b"5", b"12", b"5")]
    heads: list[RequestHead] = []
    for raw in raws:
        reader.feed(raw)
        head = reader.head(parse_request)
        assert head is not None
        heads.append(head)
        reader.renew()
    assert [head.length for head in heads] == [5, 12, 5]
    assert heads[0].fields is heads[1].fields is heads[2].fields
    reader.feed((REQUEST % b"5").replace(b"X-A: 1", b"X-A: 2"))
    other = reader.head(parse_request)
    assert other is not None
    assert other.fields[b"x-a"] == b"2"


def test_twenty_thousand_changed_heads_read_as_if_each_were_the_first() -> None:
    chance = random.Random(20261121)
    for _ in range(10_000):
        form = chance.choice((REQUEST, SHORT))
        assert same_after(parse_request, form % b"12", changed(form % b"34", chance))
        answer = ANSWER % (b"200", b"12")
        assert same_after(parse_answer, answer, changed(ANSWER % (b"200", b"3"), chance))


def changed(raw: bytes, chance: random.Random) -> bytes:
    data = bytearray(raw)
    at = chance.randrange(len(data))
    match chance.randrange(3):
        case 0:
            data[at] = chance.choice(b"\r\n :\t\x000129ACGchunked;,-+_\xff")
        case 1:
            del data[at : at + chance.randint(1, 8)]
        case _:
            data[at:at] = chance.choice([b"\r\n", b"\n", b"9", b"Content-Length: 9\r\n"])
    return bytes(data)
