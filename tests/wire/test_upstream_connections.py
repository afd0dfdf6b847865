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
