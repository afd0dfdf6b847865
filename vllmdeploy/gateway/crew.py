"""A gateway of several processes: the parent, which has the port, the administrators and the
numbers, and its workers, which serve."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from vllmdeploy.core.tasks import TaskGroup
from vllmdeploy.errors import UsageError
from vllmdeploy.gateway import meeting
from vllmdeploy.gateway.fleet import Fleet
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.hand import Hand, News, Orders
from vllmdeploy.gateway.journal import say, warn
from vllmdeploy.gateway.report import Report, show, total, what_stays
from vllmdeploy.gateway.run import Running
from vllmdeploy.gateway.spec import FleetSpec, GatewaySpec, share
from vllmdeploy.routing.states import LEAVING, State

_ROUND_S = 0.25
_AGAIN_S = 1.0  # one that cannot even begin is not begun again all the time
_EXIT_S = 10.0


class Crew:
    def __init__(self, gateway: Gateway, listeners: Sequence[socket.socket], parent: str) -> None:
        count = gateway.spec.workers
        self._gateway = gateway
        self._parent = parent
        self._gone = Report()
        self._hands = [
            Hand(number, listeners_of(listeners, number, count)) for number in range(count)
        ]

    async def begin(self, *, wait: bool) -> None:
        async with TaskGroup() as group:
            for hand in self._hands:
                group.create_task(self._begin_first(hand, wait=wait))

    async def tell(self) -> None:
        """Every worker knows of a change, and has acted on it, when this returns."""
        for instance in self._gateway.fleet.instances.values():
            if instance.health.state is State.DRAINING:
                # Until they have said what they have there, nobody may take it for drained.
                instance.load.inflight += 1
        orders = self._orders(wait=False)
        await asyncio.gather(*(hand.ask(orders) for hand in self._hands))
        self._show()

    async def rounds(self) -> None:
        while True:
            await asyncio.sleep(_ROUND_S)
            await asyncio.gather(*(hand.ask(self._news(hand)) for hand in self._hands))
            self._show()

    async def replace(self, hand: Hand) -> None:
        """Begins another where one has ended by itself."""
        while True:
            code = await hand.ended()
            warn("a worker ended, another takes its place", worker=hand.number, code=code)
            self._gone.add(what_stays(hand.report))
            hand.report = Report()
            await asyncio.sleep(_AGAIN_S)
            await hand.begin(self._command(), self._orders(wait=True))

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return [self.rounds(), *(self.replace(hand) for hand in self._hands)]

    async def end(self) -> None:
        limit_s = self._gateway.spec.thresholds.drain_timeout_s + _EXIT_S
        await asyncio.gather(*(hand.end(limit_s) for hand in self._hands))

    async def _begin_first(self, hand: Hand, *, wait: bool) -> None:
        if not await hand.begin(self._command(), self._orders(wait=wait)):
            raise UsageError(f"worker {hand.number} ended at its start; its last words are above")
        self._show()

    def _command(self) -> tuple[str, ...]:
        return self._gateway.spec.arguments

    def _orders(self, *, wait: bool) -> Orders:
        spec = self._gateway.spec
        return Orders(fleet_of_worker(self._gateway.fleet, spec.workers), self._parent, wait)

    def _news(self, hand: Hand) -> News:
        others = [one.report for one in self._hands if one is not hand]
        return News(total((self._gone, *others)).used)

    def _show(self) -> None:
        show(self._gateway, total((self._gone, *(hand.report for hand in self._hands))))


class Parent(Running):
    """Serves its workers on a socket of its own, and through them everybody."""

    def __init__(self, spec: GatewaySpec) -> None:
        everybody = replace(spec.limits, connections_per_address=spec.limits.connections)
        # Workers look at addresses, and write the access log, before they ask.
        super().__init__(replace(spec, allow=(), access_log="", limits=everybody))
        self._home = meeting.make()
        self._crew: Crew | None = None

    async def _listen(self, *, taking_over: bool) -> None:
        path = str(self._home / meeting.SOCKET)
        self._listening.append(await self._loop.create_unix_server(self._connection, path))
        self._crew = Crew(self.gateway, self.sockets, path)
        self._steering.on_changed = self._crew.tell
        await self._crew.begin(wait=taking_over)
        say("workers serve", count=self._spec.workers)

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        return [*super()._beside(), *(self._crew.tasks() if self._crew else ())]

    async def serve(self) -> None:
        try:
            await super().serve()
        finally:
            if self._crew is not None:
                await self._crew.end()
            shutil.rmtree(self._home, ignore_errors=True)

    async def _end(self) -> None:
        """Whoever is still served may ask how we are."""
        self.gateway.draining = True
        if self._crew is not None:
            await self._crew.end()
        await super()._end()


def fleet_of_worker(fleet: Fleet, workers: int) -> FleetSpec:
    upstreams = tuple(
        replace(one.spec, limit=share(one.spec.limit, workers), drain=one.health.state in LEAVING)
        for one in fleet.instances.values()
    )
    return FleetSpec(upstreams, fleet.policy, fleet.scheduling, fleet.default_model)


def listeners_of(
    all_: Sequence[socket.socket], number: int, workers: int
) -> tuple[socket.socket, ...]:
    """Each socket has somebody who accepts from it, and each worker one of each address."""
    by_address: dict[object, list[socket.socket]] = {}
    for one in all_:
        by_address.setdefault(one.getsockname(), []).append(one)
    found: list[socket.socket] = []
    for same in by_address.values():
        found.extend(same[number::workers] or [same[number % len(same)]])
    return tuple(found)
