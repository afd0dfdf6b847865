"""Connections to one upstream, kept for the next request."""

from __future__ import annotations

import asyncio
import errno
import ssl
from dataclasses import dataclass
from time import monotonic

from vllmdeploy.wire.client import UpstreamConnection
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.faults import NeverSent, NoAnswer, OutOfSockets
from vllmdeploy.wire.head import AnswerHead
from vllmdeploy.wire.limits import UPSTREAM_TIMES, UpstreamTimes
from vllmdeploy.wire.work import in_a_task


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`ip` is where we connect, found once; `name` is only what certificates are checked for.
    `path` is a socket of this machine instead."""

    ip: str
    port: int
    name: str = ""
    tls: ssl.SSLContext | None = None
    path: str = ""


class Pool:
    def __init__(
        self, endpoint: Endpoint, deadlines: Deadlines, times: UpstreamTimes = UPSTREAM_TIMES
    ) -> None:
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._times = times
        self._loop = asyncio.get_running_loop()
        self._idle: list[UpstreamConnection] = []
        self._connections: set[UpstreamConnection] = set()
        self._closed = False

    async def ask(
        self, *request: bytes, repeatable: bool = True
    ) -> tuple[UpstreamConnection, AnswerHead]:
        """On a kept connection if it is still good, else on a new one.

        A kept connection can have been closed by the other side while our request was on its way.
        That is no fault of the upstream: the request is sent once more, unless it may not be
        (`repeatable`), in which case a new connection is used at once.
        """
        stale: NoAnswer | None = None
        kept = self._take() if repeatable else None
        if kept is not None:
            try:
                return kept, await kept.ask(*request)
            except NoAnswer as error:
                stale = error
        try:
            connection = await self._open()
        except NeverSent as error:
            # Closed on us and now refusing: it died, maybe of this very request.
            if stale is not None:
                raise stale from error
            raise
        return connection, await connection.ask(*request)

    def abandon(self, reason: str) -> None:
        """Every request that still waits for the first byte may try elsewhere."""
        for connection in tuple(self._connections):
            if connection.asking:
                connection.abandon(reason)

    def give_back(self, connection: UpstreamConnection) -> None:
        if connection.reusable and not self._closed:
            connection.rest(monotonic())
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Idle connections end now, busy ones when their answers do."""
        self._closed = True
        for connection in tuple(self._idle):
            connection.close()
        self._idle.clear()

    def _take(self) -> UpstreamConnection | None:
        now = monotonic()
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and now - connection.idle_since < self._times.idle_connection_s:
                return connection
            connection.close()
        return None

    def _forget(self, connection: UpstreamConnection) -> None:
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _open(self) -> UpstreamConnection:
        await in_a_task()
        try:
            _, connection = await asyncio.wait_for(self._opening(), self._times.connect_s)
        except asyncio.TimeoutError as error:
            raise NeverSent(f"no connection within {self._times.connect_s:g} s") from error
        except ConnectionRefusedError as error:
            raise NeverSent("connection refused", refused=True) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise OutOfSockets(str(error)) from error
            raise NeverSent(f"no connection: {error}") from error
        connection.on_lost = self._forget
        self._connections.add(connection)
        return connection

    async def _opening(self) -> tuple[asyncio.BaseTransport, UpstreamConnection]:
        endpoint = self._endpoint
        if endpoint.path:
            return await self._loop.create_unix_connection(self._new, endpoint.path)
        return await self._loop.create_connection(
            self._new,
            endpoint.ip,
            endpoint.port,
            ssl=endpoint.tls,
            server_hostname=endpoint.name if endpoint.tls else None,
        )

    def _new(self) -> UpstreamConnection:
        return UpstreamConnection(self._deadlines, self._times)
