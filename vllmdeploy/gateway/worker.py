"""A worker: a gateway that serves on its parent's sockets, and does as its parent says."""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from vllmdeploy.errors import UsageError
from vllmdeploy.gateway import doors
from vllmdeploy.gateway.channel import Channel
from vllmdeploy.gateway.hand import News, Orders
from vllmdeploy.gateway.journal import warn
from vllmdeploy.gateway.report import report
from vllmdeploy.gateway.run import Running
from vllmdeploy.gateway.spec import GatewaySpec, share
from vllmdeploy.wire.pool import Endpoint, Pool


class Worker(Running):
    """Checks its instances itself: what it sees of them it sees on its own connections."""

    def __init__(self, spec: GatewaySpec) -> None:
        super().__init__(for_worker(spec))
        self._channel: Channel | None = None

    def _open_doors(self) -> doors.Predecessor | None:
        _, listeners = self._spec.worker
        self.sockets = [one for number in listeners for one in doors.given(number)]
        return None

    async def _listen(self, *, taking_over: bool) -> None:
        descriptor, _ = self._spec.worker
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        channel = self._channel = await Channel.over(end)
        orders = await channel.hear(Orders)
        if orders is None:
            raise UsageError("the parent of this worker has ended")
        self.gateway.parent = Pool(Endpoint("", 0, path=orders.parent), self.fleet.deadlines)
        await self._take(orders)
        if orders.wait:
            await self._ready()
        # Before anybody can ask the parent, through us, how we are.
        await channel.say(report(self.gateway))
        await super()._listen(taking_over=taking_over)

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        return [*super()._beside(), self._obey()]

    async def _obey(self) -> None:
        """Without a parent there is nobody to serve for."""
        channel = self._channel
        while channel is not None and (message := await channel.hear(object)) is not None:
            if isinstance(message, Orders):
                await self._take(message)
            elif isinstance(message, News):
                self.gateway.ledger.hear(message.used)
            await channel.say(report(self.gateway))
        self.stop()

    async def _take(self, orders: Orders) -> None:
        for problem in await self._steering.take(orders.fleet):
            warn("upstream not taken over", why=problem)


def for_worker(spec: GatewaySpec) -> GatewaySpec:
    """Its share of each limit; what is kept, watched and steered is its parent's, but the keys."""
    limits, workers = spec.limits, spec.workers
    return replace(
        spec,
        admin_key_file="",
        config_file="",
        state_file="",
        takeover="",
        fleet=replace(spec.fleet, upstreams=()),
        limits=replace(
            limits,
            connections=share(limits.connections, workers),
            connections_per_address=share(limits.connections_per_address, workers),
            buffered=max(limits.body, share(limits.buffered, workers)),
        ),
        thresholds=replace(
            spec.thresholds, queue_length=share(spec.thresholds.queue_length, workers)
        ),
    )
