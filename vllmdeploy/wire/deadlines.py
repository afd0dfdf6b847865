"""One timer for all connections: a timer each would cost more than the bytes it watches."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

NEVER = float("inf")
_TICK_S = 0.25
_BROKEN = "a bug in what was to be done when time was up"


class Expiring(Protocol):
    deadline: float

    def expire(self) -> None: ...


class Deadlines:
    """`soon` is about now, and never before it but when the loop itself is late: it costs nothing
    to look at."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick_s: float = _TICK_S) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._watched: set[Expiring] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.soon = monotonic() + tick_s

    def add(self, item: Expiring) -> None:
        self._watched.add(item)
        if self._timer is None:
            self.soon = monotonic() + self._tick_s
            self._timer = self._loop.call_later(self._tick_s, self._tick)

    def discard(self, item: Expiring) -> None:
        self._watched.discard(item)

    def _tick(self) -> None:
        """Goes on whatever one of them raises: all the others are watched by this timer alone."""
        self._timer = None
        if self._watched:
            self._timer = self._loop.call_later(self._tick_s, self._tick)
        now = monotonic()
        self.soon = now + self._tick_s
        for item in [item for item in self._watched if item.deadline <= now]:
            try:
                item.expire()
            except Exception as error:
                self._loop.call_exception_handler({"message": _BROKEN, "exception": error})
