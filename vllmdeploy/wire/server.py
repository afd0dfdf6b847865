"""The listening side: connections of clients, one request after another on each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.exchange import Exchange
from vllmdeploy.wire.limits import CLIENT_LIMITS, ClientLimits

_IDLE_GRACE_S = 5.0


class Sink(Protocol):
    """Takes a body piece by piece, so that nobody holds it whole.

    `take` raises Malformed for a body that is refused. `flow` is set by the connection, and called
    with True where the sink cannot keep up, with False when it has caught up. `abandon` is called
    when the rest of the body will not come, and maybe after its end, when it means nothing.
    """

    size: int
    flow: Callable[[bool], None] | None

    def take(self, piece: bytes) -> None: ...
    def abandon(self) -> None: ...


class Admitted(NamedTuple):
    """A request that may send its body, up to a limit, and who handles it then.

    `handle` runs as `Work`: not in a task until it waits for more than a wire. It ends the
    exchange in every case but its own bug or cancellation. With a `sink` the exchange has no body.
    """

    handle: Callable[[Exchange], Coroutine[Any, None, None]]
    body_limit: int
    sink: Sink | None = None


class Application(Protocol):
    def admit(self, exchange: Exchange) -> Admitted | None:
        """Sees the head alone; None when it has answered already."""
        ...

    def refusal(self, status: int, reason: str) -> bytes:
        """The body of an answer to a request that never became an exchange."""
        ...

    def refused(self, peer: str, status: int, reason: str) -> None: ...
    def broken(self, error: Exception) -> None: ...


class Closable(Protocol):
    peer: str

    def close_if_idle(self) -> None: ...
    def abort(self) -> None: ...


class Server:
    """What all connections share. `listen` may be called for several sockets."""

    def __init__(
        self, app: Application, deadlines: Deadlines, limits: ClientLimits = CLIENT_LIMITS
    ) -> None:
        self.app = app
        self.deadlines = deadlines
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.connections: set[Closable] = set()
        self.untrusted: dict[str, int] = {}
        self.buffered = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def room_for(self, peer: str) -> bool:
        limits = self.limits
        return (
            len(self.connections) < limits.connections
            and self.untrusted.get(peer, 0) < limits.connections_per_address
        )

    def enter(self, connection: Closable) -> None:
        self.connections.add(connection)
        self._empty.clear()
        self.untrusted[connection.peer] = self.untrusted.get(connection.peer, 0) + 1

    def leave(self, connection: Closable, *, trusted: bool) -> None:
        self.connections.discard(connection)
        if not trusted:
            self.forgive(connection.peer)
        if not self.connections:
            self._empty.set()

    def forgive(self, peer: str) -> None:
        """One connection of this address no longer counts against its limit."""
        left = self.untrusted.get(peer, 0) - 1
        if left > 0:
            self.untrusted[peer] = left
        else:
            self.untrusted.pop(peer, None)

    async def drain(self, limit_s: float) -> int:
        """Lets every request end; returns how many connections had to be cut.

        An idle connection is given a while to be used once more, because a request may be on its
        way: its answer then says that the connection closes.
        """
        self.draining = True
        if not await self._emptied(min(_IDLE_GRACE_S, limit_s)):
            for connection in tuple(self.connections):
                connection.close_if_idle()
            await self._emptied(max(0.0, limit_s - _IDLE_GRACE_S))
        left = tuple(self.connections)
        for connection in left:
            connection.abort()
        return len(left)

    async def _emptied(self, limit_s: float) -> bool:
        try:
            await asyncio.wait_for(self._empty.wait(), limit_s)
        except asyncio.TimeoutError:
            return False
        return True
