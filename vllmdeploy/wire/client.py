"""The calling side: one connection to an upstream, one request on it at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import cast

from vllmdeploy.wire.deadlines import NEVER, Deadlines
from vllmdeploy.wire.faults import (
    Abandoned,
    CutShort,
    Malformed,
    NoAnswer,
    NotHttp,
    TimedOut,
    UpstreamError,
)
from vllmdeploy.wire.head import UNTIL_CLOSE, AnswerHead, parse_answer
from vllmdeploy.wire.limits import MIB, UpstreamTimes
from vllmdeploy.wire.reader import MessageReader
from vllmdeploy.wire.work import Waiter, waiter

# An answer of a known length up to this is collected whole before anyone sees its head: one that
# breaks off can then be asked for again elsewhere.
COLLECTED_MAX = MIB
_UNREAD_MAX = 256 * 1024
_SENT_AT_ONCE = 256 * 1024  # in one turn of the loop: the system takes megabytes, and its time


class UpstreamConnection(asyncio.Protocol):
    """`ask`, then look at the head, then `collect` or `relay`; `reusable` says what is left of it.

    `ask` returns once the head is there and, for a short answer of a known length, its body too.
    """

    __slots__ = (
        *("_deadlines", "_failure", "_head", "_held", "_held_size", "_idle_s", "_loop", "_paused"),
        *("_reader", "_sink", "_stuck", "_times", "_transport", "_unsent", "_until", "_waiter"),
        *("asked", "deadline", "idle_since", "lost", "on_lost"),
    )

    def __init__(self, deadlines: Deadlines, times: UpstreamTimes) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadlines = deadlines
        self._times = times
        self._idle_s = times.idle_s
        self._reader = MessageReader()
        self._head: AnswerHead | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        self._sink: Callable[[bytes], None] | None = None
        self._waiter: Waiter | None = None
        self._failure: UpstreamError | None = None
        self._paused = False
        self._stuck = False
        self._unsent: memoryview | None = None
        self._until = NEVER
        self.asked = 0
        self.lost = False
        self.idle_since = 0.0
        self.deadline = NEVER
        self.on_lost: Callable[[UpstreamConnection], None] | None = None

    @property
    def reusable(self) -> bool:
        head = self._head
        return (
            not self.lost
            and self._failure is None
            and head is not None
            and head.keep_alive
            and self._reader.complete
            and not self._reader.waiting
            and self._unsent is None
        )

    async def ask(self, *request: bytes) -> AnswerHead:
        self._reader.renew()
        self._head = None
        if self._held:
            self._held = []
            self._held_size = 0
        if self.lost:
            raise NoAnswer("the connection was closed while it was idle")
        self.asked += 1
        now = monotonic()
        self._until = now + self._times.total_s
        self.deadline = now + self._times.first_byte_s
        for piece in request:
            if len(piece) <= _SENT_AT_ONCE:
                self._transport.write(piece)
            else:
                self._unsent = memoryview(piece)
                self._send_on()
        await self._wait()
        return self._answer()

    @property
    def asking(self) -> bool:
        """Whether somebody waits for the first part of an answer."""
        return self._waiter is not None and self._sink is None

    @property
    def collected(self) -> bytes | None:
        """The body, if all of it has come."""
        if not self._reader.complete:
            return None
        return self._held[0] if len(self._held) == 1 else b"".join(self._held)

    async def collect(self, limit: int) -> bytes:
        """The whole body; one longer than `limit` is not an answer we can use."""
        pieces: list[bytes] = []
        size = 0

        def keep(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size > limit:
                self._fail(NotHttp(f"the answer is longer than {limit} bytes"))
            else:
                pieces.append(piece)

        await self.relay(keep)
        return b"".join(pieces)

    async def relay(self, sink: Callable[[bytes], None]) -> None:
        """Hands on each piece of the body as it comes, until its end."""
        held, self._held = self._held, []
        for piece in held:
            sink(piece)
        if self._failure is not None:
            raise self._failure
        if self._reader.complete:
            return
        self._sink = sink
        self.flow(paused=self._paused)
        try:
            await self._wait()
        finally:
            self._sink = None

    def flow(self, *, paused: bool) -> None:
        """Paused, the upstream is not read, and is not to blame for the silence."""
        self._paused = paused
        if self.lost:
            return
        if paused:
            self.deadline = self._until
            self._transport.pause_reading()
        else:
            self.deadline = min(self._until, monotonic() + self._times.idle_s)
            self._transport.resume_reading()

    def rest(self, now: float) -> None:
        """Becomes idle in a pool."""
        if self._paused:
            # By a client slow with the very last piece: who comes next would wait for ever.
            self.flow(paused=False)
        self.idle_since = now
        self.deadline = now + self._times.idle_connection_s

    def abandon(self, reason: str) -> None:
        """Whoever waits for an answer here is told that none will come."""
        if self._failure is None:
            self._failure = Abandoned(reason)
        self.close()
        self._loop.call_soon(self._wake)  # not within the task of whoever gave it up: see Work

    def close(self) -> None:
        """At once, so that the engine stops working for nobody."""
        if not self.lost:
            self._transport.abort()

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._deadlines.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            sink = self._sink
            if sink is None:
                self._receive(data)
                return
            # Every event of every stream comes this way: no more is called than must be.
            reader = self._reader
            payload = reader.more(data)
            if payload:
                sink(payload)
            if reader.complete:
                self.deadline = NEVER
                self._wake()
            elif not self._paused:
                silent = self._deadlines.soon + self._idle_s
                self.deadline = silent if silent < self._until else self._until
        except Malformed as error:
            self._fail(NotHttp(error.reason))
        except UpstreamError as error:
            self._fail(error)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._stuck = True

    def resume_writing(self) -> None:
        self._stuck = False
        self._send_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._unsent = None
        self._deadlines.discard(self)
        head = self._head
        if self.on_lost is not None:
            self.on_lost(self)
        if self._failure is not None or self._reader.complete:
            return
        if head is None:
            begun = self._reader.waiting > 0
            fault = CutShort if begun else NoAnswer
            self._failure = fault(f"closed before an answer{_why(exc)}")
        elif head.length != UNTIL_CLOSE or exc is not None:
            self._failure = CutShort(f"closed before the end of the answer{_why(exc)}")
        else:
            self._reader.complete = True
        self._wake()

    def expire(self) -> None:
        begun = self._head is not None
        self._fail(TimedOut("silent in the middle" if begun else "no first byte", begun=begun))

    # the way of a request, and of its answer

    def _send_on(self) -> None:
        """A long body goes piece by piece, the last of what is asked; others have turns between."""
        unsent = self._unsent
        if unsent is None or self._stuck:
            return
        self._unsent = unsent[_SENT_AT_ONCE:] if len(unsent) > _SENT_AT_ONCE else None
        self._transport.write(unsent[:_SENT_AT_ONCE])
        if self._unsent is not None and not self._stuck:
            self._loop.call_soon(self._send_on)

    def _read_head(self) -> AnswerHead | None:
        if not self.asked or self._waiter is None:
            raise NotHttp("data that nobody asked for")
        head = self._reader.head(parse_answer)
        while head is not None and head.status < 200:
            if head.status == 101:
                raise NotHttp("switched protocols unasked")
            self._reader.renew()
            head = self._reader.head(parse_answer)
        self._head = head
        return head

    def _receive(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        head = self._head or self._read_head()
        if head is None:
            return
        payload = reader.body()
        if reader.complete:
            self.deadline = NEVER
        elif not self._paused:
            self.deadline = min(self._until, monotonic() + self._idle_s)
        if payload:
            self._hold(payload)
        if reader.complete or not 0 <= head.length <= COLLECTED_MAX:
            self._wake()

    def _hold(self, payload: bytes) -> None:
        self._held.append(payload)
        self._held_size += len(payload)
        if self._held_size > _UNREAD_MAX and self._waiter is None:
            self.flow(paused=True)

    def _answer(self) -> AnswerHead:
        if self._head is None:
            raise RuntimeError("woken without an answer")
        return self._head

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = waiter(self._loop)
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: UpstreamError) -> None:
        if self._failure is None:
            self._failure = failure
        self.close()
        self._wake()

    def _wake(self) -> None:
        """Last in every turn: whoever waits may go on at once, and even ask again, before this
        returns."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _why(lost: Exception | None) -> str:
    """An orderly end has no words of its own."""
    return f": {lost}" if lost else ""
