"""A connection to an upstream between two requests."""

from __future__ import annotations

import asyncio

from vllmdeploy.wire.client import UpstreamConnection
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.faults import Abandoned
from vllmdeploy.wire.limits import UpstreamTimes

ALIVE_S = 60.0
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
LAST = b"1\r\nb\r\n0\r\n\r\n"


class Wire(asyncio.Transport):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.aborted = False
        self.sent = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


def connected() -> tuple[UpstreamConnection, Wire]:
    wire = Wire()
    found = UpstreamConnection(Deadlines(asyncio.get_running_loop()), UpstreamTimes())
    found.connection_made(wire)
    return found, wire


async def test_one_paused_by_the_very_last_piece_is_read_again_once_it_rests() -> None:
    connection, wire = connected()
    asking = asyncio.ensure_future(connection.ask(b"x"))
    await asyncio.sleep(0)
    connection.data_received(STREAM)
    await asyncio.wait_for(asking, ALIVE_S)
    got: list[bytes] = []

    def slow(piece: bytes) -> None:
        got.append(piece)
        connection.flow(paused=piece == b"b")

    relaying = asyncio.ensure_future(connection.relay(slow))
    await asyncio.sleep(0)
    connection.data_received(LAST)
    await asyncio.wait_for(relaying, ALIVE_S)
    assert (got, wire.reading, connection.reusable) == ([b"a", b"b"], False, True)
    connection.rest(0.0)
    assert wire.reading
    connection.connection_lost(None)


async def test_who_waits_for_an_answer_is_told_that_it_was_given_up() -> None:
    connection, wire = connected()
    asking = asyncio.ensure_future(connection.ask(b"x"))
    await asyncio.sleep(0)
    assert (connection.asking, wire.sent) == (True, b"x")
    connection.abandon("hung")
    [told] = await asyncio.wait_for(asyncio.gather(asking, return_exceptions=True), ALIVE_S)
    assert isinstance(told, Abandoned)
    assert (wire.aborted, connection.asking, connection.reusable) == (True, False, False)
    connection.connection_lost(None)


async def test_a_long_body_goes_in_pieces_between_which_others_have_turns() -> None:
    connection, wire = connected()
    body = bytes(range(256)) * 4096  # four pieces
    asking = asyncio.ensure_future(connection.ask(b"head", body))
    lengths: list[int] = []
    while len(wire.sent) < len(body):
        await asyncio.sleep(0)
        lengths.append(len(wire.sent))
    assert sorted(set(lengths)) == [4 + piece * len(body) // 4 for piece in range(1, 5)]
    assert wire.sent == b"head" + body
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    await asyncio.wait_for(asking, ALIVE_S)
    assert connection.reusable
    connection.connection_lost(None)


async def test_one_that_is_answered_before_it_was_told_all_is_not_used_again() -> None:
    connection, wire = connected()
    connection.pause_writing()
    asking = asyncio.ensure_future(connection.ask(b"head", b"x" * 1_000_000))
    await asyncio.sleep(0)
    assert wire.sent == b"head"
    connection.data_received(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
    await asyncio.wait_for(asking, ALIVE_S)
    assert not connection.reusable
    connection.resume_writing()
    assert len(wire.sent) > len(b"head")
    connection.connection_lost(None)
    sent = len(wire.sent)
    await asyncio.sleep(0)
    assert len(wire.sent) == sent
