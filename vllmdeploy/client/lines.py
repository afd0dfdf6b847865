"""Calls that wait because every instance is busy: a line for each model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from vllmdeploy.client.calls import Call
from vllmdeploy.client.errors import APIConnectionError, APITimeoutError
from vllmdeploy.client.instance import Instance
from vllmdeploy.routing.queue import Entry, Refusal, WaitingRoom
from vllmdeploy.routing.scheduling import Scheduling
from vllmdeploy.routing.thresholds import Thresholds

# How soon to look again where nothing will tell us that a busy engine has room again.
_LOOK_AGAIN_S = 0.25


@dataclass(slots=True, eq=False)
class Waiter:
    call: Call
    tried: Collection[str]
    place: asyncio.Future[Instance]


Choose = Callable[[Call, Collection[str]], "Instance | None"]
"""Finds a free instance and books it."""


class Lines:
    def __init__(self, way: Scheduling, limits: Thresholds, choose: Choose) -> None:
        self._loop = asyncio.get_running_loop()
        self._way = way
        self._limits = limits
        self._choose = choose
        self._rooms: dict[str, WaitingRoom[Waiter]] = {}
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(len(room) for room in self._rooms.values())

    def waits(self, model: str) -> bool:
        room = self._rooms.get(model)
        return room is not None and len(room) > 0

    async def wait(
        self, call: Call, tried: Collection[str], give_up: Callable[[Instance], None]
    ) -> Instance:
        """`give_up` gives back an instance that came in the moment in which the caller left."""
        room = self._room(call.model)
        waiter = Waiter(call, tried, self._loop.create_future())
        entry = room.enter(self._loop.time(), waiter, call.request)
        if isinstance(entry, Refusal):
            after = room.retry_after_s()
            kind = APIConnectionError if entry is Refusal.FULL else APITimeoutError
            raise kind(f"every instance is busy and {entry.value}", hint=f"try again in {after} s")
        self._set_alarm()
        try:
            return await waiter.place
        except asyncio.CancelledError:
            place, left = waiter.place, room.leave(entry)
            if not left and place.done() and not place.cancelled() and not place.exception():
                give_up(place.result())
            raise

    def serve(self) -> None:
        """Called whenever a place may have become free."""
        now = self._loop.time()
        for room in self._rooms.values():
            for entry, why in room.overdue(now):
                _refuse(entry, APITimeoutError(f"every instance is busy: {why.value}"))
            self._serve(room, now)
        self._set_alarm()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        for room in self._rooms.values():
            while (entry := room.next(self._loop.time())) is not None:
                _refuse(entry, APIConnectionError("the client was closed"))

    def _serve(self, room: WaitingRoom[Waiter], now: float) -> None:
        while (entry := room.next(now)) is not None:
            if entry.item.place.done():
                # Cancelled, and its caller has not run since to leave the line.
                continue
            chosen = self._choose(entry.item.call, entry.item.tried)
            if chosen is None:
                room.put_back(entry)
                return
            entry.item.place.set_result(chosen)

    def _room(self, model: str) -> WaitingRoom[Waiter]:
        room = self._rooms.get(model)
        if room is None:
            limits = self._limits
            room = self._rooms[model] = WaitingRoom[Waiter](
                self._way, length=limits.queue_length, timeout_s=limits.queue_timeout_s
            )
        return room

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if len(self):
            self._alarm = self._loop.call_later(_LOOK_AGAIN_S, self.serve)


def _refuse(entry: Entry[Waiter], error: APIConnectionError) -> None:
    if not entry.item.place.done():
        entry.item.place.set_exception(error)
