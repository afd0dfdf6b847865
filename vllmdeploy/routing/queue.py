"""Those who wait while every instance is busy: a bounded line with a bounded wait."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from vllmdeploy.routing.scheduling import Scheduling
from vllmdeploy.routing.upstream import Request

T = TypeVar("T")

_SMOOTHING = 0.1


class Refusal(Enum):
    FULL = "the queue is full"
    DEADLINE = "the deadline cannot be kept"


class Leaving(Enum):
    TIMED_OUT = "waited too long"
    DEADLINE = "the deadline has passed"


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """`item` is the owner's; the rest is read only."""

    item: T
    request: Request
    since: float
    until: float
    waiting: bool = True


class WaitingRoom(Generic[T]):
    """One for each model, so that nobody waits behind a model they did not ask for.

    Everything is O(log n): who leaves early is only marked, and swept when the marked outnumber
    the waiting.
    """

    def __init__(self, way: Scheduling, *, length: int, timeout_s: float) -> None:
        self._way = way
        self._length = length
        self._timeout_s = timeout_s
        self._next: list[tuple[float, float, int, Entry[T]]] = []
        self._ends: list[tuple[float, int, Entry[T]]] = []
        self._arrivals = 0
        self._waiting = 0
        self._interval_s = 0.0
        self._left_at = 0.0

    def __len__(self) -> int:
        return self._waiting

    def enter(
        self, now: float, item: T, request: Request, *, service_s: float = 0.0
    ) -> Entry[T] | Refusal:
        """`service_s`: how long an answer takes at best, once somebody works on it."""
        if self._waiting >= self._length:
            return Refusal.FULL
        until = now + self._timeout_s
        if self._way.keeps_deadlines and request.deadline is not None:
            until = min(until, request.deadline - service_s)
            # Who goes before a newcomer is not known yet; that one has to leave first is certain.
            if until <= now + self._interval_s:
                return Refusal.DEADLINE
        if not self._waiting:
            self._left_at = now  # the pace of leaving is measured only while somebody waits
        entry = Entry(item, request, now, until)
        self._arrivals += 1
        heapq.heappush(self._next, (*self._way.key(request, now), self._arrivals, entry))
        heapq.heappush(self._ends, (until, self._arrivals, entry))
        self._waiting += 1
        return entry

    def next(self, now: float) -> Entry[T] | None:
        """Takes out who is to be served now. Call `overdue` first: they are not served any more."""
        while self._next:
            entry = heapq.heappop(self._next)[-1]
            if entry.waiting:
                self._take_out(entry)
                self._measure(now - self._left_at)
                self._left_at = now
                self._sweep()
                return entry
        return None

    def put_back(self, entry: Entry[T]) -> None:
        """Who was taken out and found no place after all keeps the place it had."""
        entry.waiting = True
        self._arrivals += 1
        key = self._way.key(entry.request, entry.since)
        # Among equals by an earlier number than anybody's.
        heapq.heappush(self._next, (*key, -self._arrivals, entry))
        heapq.heappush(self._ends, (entry.until, self._arrivals, entry))
        self._waiting += 1

    def leave(self, entry: Entry[T]) -> bool:
        """The client is gone. False: it was not waiting any more."""
        if not entry.waiting:
            return False
        self._take_out(entry)
        self._sweep()
        return True

    def overdue(self, now: float) -> Iterator[tuple[Entry[T], Leaving]]:
        while self._ends and (self._ends[0][0] <= now or not self._ends[0][-1].waiting):
            entry = heapq.heappop(self._ends)[-1]
            if entry.waiting:
                self._take_out(entry)
                timed_out = now - entry.since >= self._timeout_s
                yield entry, Leaving.TIMED_OUT if timed_out else Leaving.DEADLINE

    def next_end(self) -> float | None:
        """When `overdue` will have something to say, if nothing happens before."""
        while self._ends and not self._ends[0][-1].waiting:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def expected_wait_s(self) -> float:
        return self._waiting * self._interval_s

    def retry_after_s(self) -> int:
        """Whole seconds for the header: when those who wait now should have been served."""
        return max(1, min(math.ceil(self.expected_wait_s()), math.ceil(self._timeout_s)))

    def _measure(self, interval: float) -> None:
        step = _SMOOTHING if self._interval_s else 1.0
        self._interval_s += step * (interval - self._interval_s)

    def _take_out(self, entry: Entry[T]) -> None:
        entry.waiting = False
        self._waiting -= 1

    def _sweep(self) -> None:
        if len(self._next) > 2 * self._waiting + 64:
            self._next = [place for place in self._next if place[-1].waiting]
            heapq.heapify(self._next)
        if len(self._ends) > 2 * self._waiting + 64:
            self._ends = [end for end in self._ends if end[-1].waiting]
            heapq.heapify(self._ends)
