"""One call from its first try to the end of its answer, with failover before the first byte."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from vllmdeploy.client.calls import Call, failure_of
from vllmdeploy.client.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    status_error,
)
from vllmdeploy.client.fleet import Fleet
from vllmdeploy.client.instance import Instance
from vllmdeploy.routing import retry
from vllmdeploy.routing.failure import Failure, failure_of_status
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.wire.client import UpstreamConnection
from vllmdeploy.wire.faults import UpstreamError
from vllmdeploy.wire.head import AnswerHead

_ANSWER_MAX = 256 << 20
_BUFFERED_MAX = 256 * 1024
_TIMEOUTS = frozenset({Failure.FIRST_BYTE_TIMEOUT, Failure.IDLE_TIMEOUT, Failure.CONNECT_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    instance: str
    status: int
    headers: dict[str, str]
    body: bytes


class _Failed(Exception):
    def __init__(self, failure: Failure, error: APIError) -> None:
        super().__init__(str(error))
        self.failure = failure
        self.error = error


class Exchange:
    """What is open of a call: its place at an instance and the connection. Closed exactly once."""

    def __init__(
        self,
        fleet: Fleet,
        instance: Instance,
        connection: UpstreamConnection,
        head: AnswerHead,
        *,
        began: float,
    ) -> None:
        self._fleet = fleet
        self._instance = instance
        self._connection = connection
        self._closed = False
        self._began = began
        self.status = head.status
        self.headers = _headers(head)

    @property
    def instance(self) -> str:
        return self._instance.upstream.id

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Leaving early closes the connection: the engine stops as well."""
        arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        held = 0

        def take(piece: bytes) -> None:
            nonlocal held
            held += len(piece)
            arrived.put_nowait(piece)
            if held > _BUFFERED_MAX:
                self._connection.flow(paused=True)

        relay = asyncio.ensure_future(self._connection.relay(take))

        def end(done: asyncio.Future[None]) -> None:
            if not done.cancelled():
                done.exception()  # looked at, for the caller may have left before it came
            arrived.put_nowait(None)

        relay.add_done_callback(end)
        try:
            while (piece := await arrived.get()) is not None:
                if held > _BUFFERED_MAX >= held - len(piece) and not relay.done():
                    self._connection.flow(paused=False)
                held -= len(piece)
                yield piece
            relay.result()
        except UpstreamError as error:
            self.close(failure_of(error))
            raise _named(self._instance, error) from error
        finally:
            if not relay.done():
                relay.cancel()

    def close(self, failure: Failure | None = None, *, whole: bool = True) -> None:
        if self._closed:
            return
        self._closed = True
        if failure is None and whole:
            self._instance.give_back(self._connection)
        else:
            self._connection.close()
        self._fleet.ended(self._instance, self._began, failure, whole=whole)


async def ask(fleet: Fleet, call: Call, limits: Thresholds) -> Reply:
    reply = await _tried(fleet, call, limits)
    if not isinstance(reply, Reply):
        raise TypeError("a whole answer was asked for")
    return reply


async def open_stream(fleet: Fleet, call: Call, limits: Thresholds) -> Exchange:
    exchange = await _tried(fleet, call, limits)
    if not isinstance(exchange, Exchange):
        raise TypeError("a stream was asked for")
    return exchange


async def _tried(fleet: Fleet, call: Call, limits: Thresholds) -> Reply | Exchange:
    tried: list[str] = []
    suspicions = 0
    latest: APIError | None = None
    while True:
        instance = await fleet.place(call, tried)
        if instance is None:
            raise latest or APIConnectionError(fleet.reasons())
        tried.append(instance.upstream.id)
        began = asyncio.get_running_loop().time()
        try:
            return await _attempt(fleet, instance, call)
        except _Failed as failed:
            latest = failed.error
            suspicions += retry.suspicious(failed.failure)
            attempt = retry.Attempt(
                failed.failure,
                tries=len(tried),
                replayable=call.replayable,
                suspicions=suspicions,
            )
            again = retry.verdict(attempt, limits) is retry.Verdict.RETRY and (
                not retry.charged(failed.failure) or fleet.may_retry()
            )
            fleet.ended(instance, began, failed.failure)
            if not again:
                raise failed.error from failed.__cause__
            await asyncio.sleep(retry.delay(attempt, random.random, limits))
        except BaseException:
            # Cancelled by whoever asked: nothing is known against the instance.
            fleet.ended(instance, began, Failure.CLIENT_GONE)
            raise


async def _attempt(fleet: Fleet, instance: Instance, call: Call) -> Reply | Exchange:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        connection, head = await instance.ask(
            call.method,
            call.path,
            call.body,
            headers=call.headers,
            repeatable=call.replayable,
        )
        instance.load.first_byte(loop.time() - began)
        failure = failure_of_status(head.status)
        if call.stream and failure is None:
            return Exchange(fleet, instance, connection, head, began=began)
        body = await connection.collect(_ANSWER_MAX)
    except UpstreamError as error:
        raise _Failed(failure_of(error), _named(instance, error)) from error
    instance.give_back(connection)
    if failure is not None:
        raise _Failed(failure, status_error(instance.upstream.id, head.status, body))
    fleet.ended(instance, began, None)
    return Reply(instance.upstream.id, head.status, _headers(head), body)


def _headers(head: AnswerHead) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in head.lines)
    return {name.lower(): value.strip() for name, _, value in pairs}


def _named(instance: Instance, error: UpstreamError) -> APIConnectionError:
    failure = failure_of(error)
    kind = APITimeoutError if failure in _TIMEOUTS else APIConnectionError
    return kind(f"{instance.upstream.id}: {failure.value}: {error}")
