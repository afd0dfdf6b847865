"""One instance as a client holds it: its address, connections, load and health."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence

from vllmdeploy.routing.health import Health
from vllmdeploy.routing.load import Load
from vllmdeploy.routing.states import State
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.routing.upstream import Upstream
from vllmdeploy.wire.client import UpstreamConnection
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.faults import NeverSent
from vllmdeploy.wire.head import AnswerHead, Field
from vllmdeploy.wire.limits import UpstreamTimes
from vllmdeploy.wire.pool import Endpoint, Pool
from vllmdeploy.wire.write import request_head

Opened = tuple[UpstreamConnection, AnswerHead]


Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def look_up(host: str, port: int) -> Sequence[str]:
    """IPv4 first: `localhost` names both, and engines listen on 0.0.0.0."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NeverSent(f"{host}: {error}") from error
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    return tuple(dict.fromkeys(str(info[4][0]) for info in found))


class Instance:
    """Begins as ready: a client may be asked in the same moment in which it is made, and a closed
    port shows itself at the first call, which then goes elsewhere."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: str,
        deadlines: Deadlines,
        times: UpstreamTimes,
        limits: Thresholds,
        resolve: Resolve,
    ) -> None:
        self.upstream = upstream
        self.load = Load()
        self._loop = asyncio.get_running_loop()
        self.health = Health(
            self._loop.time(), limits, generation=upstream.generation, state=State.READY
        )
        self.models: tuple[str, ...] = upstream.models
        self._deadlines = deadlines
        self._times = times
        self._resolve = resolve
        self._pools: list[Pool] = []
        host = f"[{upstream.address.host}]" if ":" in upstream.address.host else ""
        self._host = f"{host or upstream.address.host}:{upstream.address.port}"
        self._fields = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        if key:
            self._fields.append((b"authorization", b"Bearer " + key.encode("latin-1")))

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Iterable[Field] = (),
        repeatable: bool = True,
    ) -> Opened:
        fields = [*self._fields, *headers, (b"content-length", b"%d" % len(body))]
        target = self.upstream.address.prefix + path
        request = request_head(method, target, self._host, fields) + body
        pools = await self._addresses()
        for pool in tuple(pools):
            try:
                opened = await pool.ask(request, repeatable=repeatable)
            except NeverSent:
                if pool is pools[-1]:
                    raise
                continue
            if pool is not pools[0]:
                pools.remove(pool)
                pools.insert(0, pool)
            return opened
        raise NeverSent("the name has no address")

    def give_back(self, connection: UpstreamConnection) -> None:
        if connection.reusable:
            self._pools[0].give_back(connection)
        else:
            connection.close()

    def abandon(self, reason: str) -> None:
        """Calls that still wait for their first byte may go elsewhere."""
        for pool in self._pools:
            pool.abandon(reason)

    def close(self) -> None:
        for pool in self._pools:
            pool.close()

    async def _addresses(self) -> list[Pool]:
        """Looked up once; all of them are tried, and the one that answered goes first."""
        if not self._pools:
            address = self.upstream.address
            context = ssl.create_default_context() if address.tls else None
            for ip in await self._resolve(address.host, address.port):
                endpoint = Endpoint(ip, address.port, address.host, context)
                self._pools.append(Pool(endpoint, self._deadlines, self._times))
        return self._pools
