"""Calls over HTTP/1.1 with connections that are kept; the transport of every real run."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace

from vllmdeploy.batch.answers import Reply
from vllmdeploy.batch.transport import CallFailed
from vllmdeploy.routing.upstream import Address
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.faults import NeverSent, OutOfSockets, TimedOut, UpstreamError
from vllmdeploy.wire.head import AnswerHead
from vllmdeploy.wire.limits import UPSTREAM_TIMES
from vllmdeploy.wire.pool import Endpoint, Pool
from vllmdeploy.wire.write import request_head

_MAX_ANSWER = 64 << 20
_CONNECT_S = 5.0


class HttpCalls:
    """`key` goes out as a bearer token; an answer must be whole `timeout` seconds after its
    request was sent, however it trickles."""

    def __init__(self, *, key: str = "", timeout: float) -> None:
        self._deadlines = Deadlines(asyncio.get_running_loop())
        self._times = replace(
            UPSTREAM_TIMES,
            connect_s=min(_CONNECT_S, timeout),
            first_byte_s=timeout,
            idle_s=min(UPSTREAM_TIMES.idle_s, timeout),
            total_s=timeout,
        )
        self._timeout = timeout
        self._fields = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
        if key:
            self._fields.append((b"authorization", b"Bearer " + key.encode("ascii")))
        self._pools: dict[Address, Pool] = {}
        self._heads: dict[tuple[Address, str], bytes] = {}

    async def post(self, to: Address, path: str, body: bytes) -> Reply:
        head = self._heads.get((to, path))
        if head is None:
            # Everything but the length is the same for every row.
            head = self._head("POST", to, path)[:-2] + b"content-length: "
            self._heads[to, path] = head
        return await self._call(to, b"%b%d\r\n\r\n%b" % (head, len(body), body))

    async def get(self, to: Address, path: str) -> Reply:
        return await self._call(to, self._head("GET", to, path))

    async def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        await asyncio.sleep(0)  # closed transports say so to their protocols on the next turn

    def _head(self, method: str, to: Address, path: str) -> bytes:
        host = f"[{to.host}]" if ":" in to.host else to.host
        return request_head(method, to.prefix + path, f"{host}:{to.port}", self._fields)

    def _pool(self, to: Address) -> Pool:
        pool = self._pools.get(to)
        if pool is None:
            context = ssl.create_default_context() if to.tls else None
            endpoint = Endpoint(to.host, to.port, to.host, context)
            pool = self._pools[to] = Pool(endpoint, self._deadlines, self._times)
        return pool

    async def _call(self, to: Address, request: bytes) -> Reply:
        pool = self._pool(to)
        try:
            connection, head = await pool.ask(request)
            try:
                body = await connection.collect(_MAX_ANSWER)
            finally:
                pool.give_back(connection)
        except (NeverSent, OutOfSockets) as error:
            raise CallFailed(str(error), sent=False) from error
        except TimedOut as error:
            raise CallFailed(self._late(error), sent=True, timed_out=True) from error
        except UpstreamError as error:
            raise CallFailed(str(error), sent=True) from error
        return _reply(head, body)

    def _late(self, error: TimedOut) -> str:
        if not error.begun:
            return f"no answer within {self._timeout:g} s"
        words = f"no whole answer within {self._timeout:g} s"
        idle_s = self._times.idle_s
        return f"{words}, or {idle_s:g} s of silence within it" if idle_s < self._timeout else words


def _reply(head: AnswerHead, body: bytes) -> Reply:
    return Reply(head.status, head.text(b"retry-after") if head.status != 200 else "", body)
