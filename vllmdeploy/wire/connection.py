"""One client's connection: reads requests, hands them on, writes their answers in order."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import cast

from vllmdeploy.wire.body import Gathered
from vllmdeploy.wire.deadlines import NEVER
from vllmdeploy.wire.exchange import Exchange
from vllmdeploy.wire.faults import Malformed
from vllmdeploy.wire.head import parse_request
from vllmdeploy.wire.reader import MessageReader
from vllmdeploy.wire.server import Admitted, Server
from vllmdeploy.wire.work import Work
from vllmdeploy.wire.write import CONTINUE, answer_head

_AHEAD_MAX = 64 * 1024
_READ_AT_ONCE = 128 * 1024  # or more in one piece: then the others have a turn before the next
_WRITE_HIGH = 256 * 1024
_RESET = struct.pack("ii", 1, 0)  # lingers for no time at all: closing is a reset
_RESETTABLE = (socket.AF_INET, socket.AF_INET6)
_JSON = ((b"content-type", b"application/json"),)


# The states of a connection; plain numbers, because they are looked at many times a request.
# LINGER: answered before the request was read, whose rest is thrown away.
_HEAD, _BODY, _BUSY, _LINGER, _GONE = range(5)


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        *("_admitted", "_body_since", "_exchange", "_gathered", "_held", "_paused", "_reader"),
        *("_server", "_state", "_transport", "_trusted", "_work"),
        *("deadline", "notes", "peer"),
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader = MessageReader()
        self._state = _HEAD
        self._exchange: Exchange | None = None
        self._admitted: Admitted | None = None
        self._work: Work | None = None
        self._gathered = Gathered()
        self._body_since = 0.0
        self._held = False
        self._paused = False
        self._trusted = False
        self.notes: dict[str, object] = {}
        self.peer = ""
        self.deadline = NEVER

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_WRITE_HIGH)
        name = cast("tuple[str, int] | str | None", transport.get_extra_info("peername"))
        self.peer = name[0] if isinstance(name, tuple) else "unix"
        has_room = self._server.room_for(self.peer)
        self._server.enter(self)
        self._server.deadlines.add(self)
        self.deadline = monotonic() + self._server.limits.head_s
        if not has_room:
            self._refuse(503, "too many connections")

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state > _BUSY:
            return
        self._reader.feed(data)
        if state is not _BUSY:
            if len(data) >= _READ_AT_ONCE:
                self._let_others_read()
            self._advance()
        elif self._reader.waiting > _AHEAD_MAX:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        # A client that only ends its sending side looks like one that left; as in nginx, it left.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.close()  # Python 3.10 holds a TLS transport open until told
        self._state = _GONE
        self._server.deadlines.discard(self)
        self._server.leave(self, trusted=self._trusted)
        self._forget_body()
        if self._exchange is not None:
            self._exchange.done = True
        if self._work is not None:
            self._work.cancel()

    def pause_writing(self) -> None:
        self._set_paused(paused=True)

    def resume_writing(self) -> None:
        self._set_paused(paused=False)

    def expire(self) -> None:
        if self._state is _LINGER and not self._transport.get_write_buffer_size():
            self._transport.abort()  # all is said, and a reset could destroy it on its way
        elif self._state in (_BUSY, _LINGER):
            self.abort()
        elif self._state is _HEAD and self._reader.untouched:
            self._transport.close()
        else:
            self._refuse(408, "the request did not arrive in time")

    # what an exchange calls

    def send(self, data: bytes) -> None:
        if self._state is not _GONE:
            self._transport.write(data)

    def keeps(self) -> bool:
        return (
            self._reader.complete
            and not self._server.draining
            and self._exchange is not None
            and self._exchange.head.keep_alive
        )

    def finished(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._gathered.size:
            self._forget_body()
        if self._state is _GONE:
            return
        if exchange is None or not exchange.keep:
            self._linger()
            return
        was_busy = self._state is _BUSY
        self._reader.renew()
        self._state = _HEAD
        self._work = None
        self.deadline = monotonic() + self._server.limits.keep_alive_s
        if was_busy and self._reader.waiting:
            self._transport.resume_reading()
            self._server.loop.call_soon(self._advance)

    def abort(self) -> None:
        """A reset: an orderly end is, to a client of HTTP/1.0, the end of a whole answer."""
        connected = cast("socket.socket | None", self._transport.get_extra_info("socket"))
        if connected is not None and connected.family in _RESETTABLE:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # what the server calls

    def close_if_idle(self) -> None:
        if self._state is _HEAD and self._reader.untouched:
            self._transport.close()

    # the way of a request

    def _advance(self) -> None:
        try:
            while self._state is _HEAD and self._read_head():
                pass
            if self._state is _BODY:
                self._read_body()
        except Malformed as error:
            self._refuse(error.status, error.reason)

    def _read_head(self) -> bool:
        """True when a request was answered on its head alone, so that the next may follow."""
        reader = self._reader
        reader.skip_empty_line()
        head = reader.head(parse_request)
        if head is None:
            # From its first byte on; later bytes do not win a head more time.
            self.deadline = min(self.deadline, monotonic() + self._server.limits.head_s)
            return False
        self._exchange = exchange = Exchange(self, head, self.peer, monotonic(), self.notes)
        exchange.trust = self._trust
        first = reader.body()
        self._admitted = admitted = self._server.app.admit(exchange)
        if admitted is None:
            return self._state is _HEAD and reader.waiting > 0
        if head.length > admitted.body_limit:
            self._refuse(413, f"the body is longer than {admitted.body_limit} bytes")
            return False
        self._state = _BODY
        self._body_since = exchange.received_at
        self._gathered.expect(head.length)
        if admitted.sink is not None:
            admitted.sink.flow = self._hold_body
        self._keep_body(first)
        if not reader.complete and self._state is _BODY and b"expect" in head.fields:
            self._expect(head.fields[b"expect"])
        return False

    def _expect(self, wanted: bytes) -> None:
        if wanted.lower() != b"100-continue":
            self._refuse(417, "only 100-continue can be expected")
        elif not self._gathered.size:
            self._transport.write(CONTINUE)

    def _read_body(self) -> None:
        reader = self._reader
        if not reader.complete:
            self._keep_body(reader.body())
            if self._state is not _BODY:
                return
        if not reader.complete:
            limits = self._server.limits
            now = monotonic()
            by_rate = self._body_since + limits.body_rate_after_s + self._come() / limits.body_rate
            self.deadline = NEVER if self._held else min(now + limits.body_idle_s, by_rate)
            return
        exchange, admitted = self._exchange, self._admitted
        if exchange is None or admitted is None:
            raise RuntimeError("a body was read without its head")
        exchange.body = self._gathered.take()
        self._state = _BUSY
        self.deadline = NEVER
        # Kept before it begins: it may end, and let the next request in, before `go_on` returns.
        self._work = work = Work(admitted.handle(exchange), self._server.loop, self._broken)
        work.go_on()

    def _keep_body(self, payload: bytes) -> None:
        if not payload:
            return
        if self._admitted is not None and self._admitted.sink is not None:
            self._admitted.sink.take(payload)
            return
        server, gathered = self._server, self._gathered
        gathered.add(payload)
        server.buffered += len(payload)
        limit = self._admitted.body_limit if self._admitted else 0
        if gathered.size > limit:
            self._refuse(413, f"the body is longer than {limit} bytes")
        elif server.buffered > server.limits.buffered:
            self._refuse(503, "too many bytes of other requests are waiting; try again")

    def _come(self) -> int:
        sink = self._admitted.sink if self._admitted else None
        return self._gathered.size if sink is None else sink.size

    def _let_others_read(self) -> None:
        """libuv reads on, megabytes in one turn, for as long as a fast client has filled the
        system's buffers."""
        self._transport.pause_reading()
        self._server.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._state is not _GONE and not self._held:
            self._transport.resume_reading()

    def _hold_body(self, paused: bool) -> None:
        """The silence of a client that is not read is not its own."""
        if self._state is _GONE:
            return
        self._held = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        if self._state is _BODY:
            self.deadline = NEVER if paused else monotonic() + self._server.limits.body_idle_s

    def _forget_body(self) -> None:
        self._server.buffered -= self._gathered.size
        self._gathered.forget()
        if self._admitted is not None and self._admitted.sink is not None:
            self._admitted.sink.abandon()

    def _broken(self, error: Exception) -> None:
        """The application's own bug: told to the log whole, to the client without details."""
        exchange = self._exchange
        self._server.app.broken(error)
        if exchange is not None and not exchange.done:
            exchange.abort()

    # the ends

    def _refuse(self, status: int, reason: str) -> None:
        """Answers what is not, or not yet, an exchange; the connection ends with it."""
        app = self._server.app
        app.refused(self.peer, status, reason)
        body = app.refusal(status, reason)
        head = answer_head(status, _JSON, length=len(body), chunked=False, close=True)
        self._transport.write(head + body)
        if self._exchange is not None:
            self._exchange.done = True
        self._forget_body()
        self._linger()

    def _linger(self) -> None:
        """Closing on unread bytes would reset the connection and could destroy our answer."""
        if self._reader.complete and not self._reader.waiting:
            self._state = _LINGER
            self.deadline = monotonic() + self._server.limits.write_stall_s
            self._transport.close()
            return
        self._state = _LINGER
        self._reader = MessageReader()
        self.deadline = monotonic() + self._server.limits.linger_s
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _set_paused(self, *, paused: bool) -> None:
        self._paused = paused
        stall = self._server.limits.write_stall_s
        if self._state is _BUSY:
            self.deadline = monotonic() + stall if paused else NEVER
        exchange = self._exchange
        if exchange is not None:
            exchange.paused = paused
            if exchange.flow is not None:
                exchange.flow(paused)

    def _trust(self) -> None:
        if not self._trusted:
            self._trusted = True
            self._server.forgive(self.peer)
