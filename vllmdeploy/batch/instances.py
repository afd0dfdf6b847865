"""Which instance takes the next row: those that are up and have a place, by a routing policy."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from vllmdeploy.batch.limits import Concurrency, outage_delay
from vllmdeploy.routing.load import Load
from vllmdeploy.routing.policies.base import Choose, Policy, chooser
from vllmdeploy.routing.upstream import ANY_REQUEST, Request, Upstream

_TROUBLE = 5  # failed answers in a row that make an instance suspect
_LONGEST_RETRY_AFTER_S = 60.0


class Instance:
    """One upstream with its places; a candidate for routing policies."""

    def __init__(self, upstream: Upstream, cap: int) -> None:
        self.upstream = upstream
        self.load = Load()
        self.places = Concurrency(cap)
        self.down_until = 0.0
        self.failures = 0
        self.reason = ""
        self.ok = 0
        self.failed = 0
        self.tokens = 0
        self._trouble = 0
        self._probing = False
        self.name = _plain(upstream.id)

    def room(self, now: float) -> int:
        """An instance that failed is tried with a single row, whatever is still in flight there."""
        if self.failures:
            return 0 if self._probing or now < self.down_until else 1
        return self.places.limit - self.load.inflight

    def taken(self) -> None:
        self.load.begin()
        self._probing = self.failures > 0

    def answered(self, now: float, seconds: float, tokens: int) -> None:
        load = self.load
        saturated = load.inflight >= self.places.limit
        load.end(now, seconds)
        self.places.completed(now, tokens, saturated=saturated)
        self.ok += 1
        self.tokens += tokens
        self.failures = self._trouble = 0
        self.reason = ""
        self._probing = False

    def rejected(self, now: float) -> None:
        """It answered, and the row was at fault: the instance is well."""
        self.load.end(now)
        self.failed += 1
        self.failures = self._trouble = 0
        self.reason = ""
        self._probing = False

    def troubled(self, now: float, reason: str, chance: random.Random) -> None:
        """One bad answer may be the row's fault; several in a row are the instance's."""
        self._trouble += 1
        if self._trouble >= _TROUBLE or self.failures:
            self.lost(now, reason, chance)
        else:
            self.load.end(now)
            self._probing = False

    def refused(
        self, now: float, reason: str, chance: random.Random, retry_after: float | None
    ) -> None:
        if not self.failures:  # a single row that is refused does not say how many are too many
            self.places.refused(now)
        self.lost(now, reason, chance, retry_after)

    def lost(
        self, now: float, reason: str, chance: random.Random, retry_after: float | None = None
    ) -> None:
        self.load.end(now)
        self._probing = False
        self.reason = reason
        # Rows in flight together fail together: that is one failure, not hundreds.
        if now >= self.down_until or not self.failures:
            delay = outage_delay(self.failures, chance)
            if retry_after is not None:
                delay = min(max(delay, retry_after), _LONGEST_RETRY_AFTER_S)
            self.failures += 1
            self.down_until = now + delay

    def abandoned(self, now: float) -> None:
        self.load.end(now)
        self._probing = False


class Instances:
    def __init__(
        self, upstreams: Sequence[Upstream], policy: Policy, *, cap: int, chance: random.Random
    ) -> None:
        self.all = tuple(Instance(upstream, cap) for upstream in upstreams)
        self._choose: Choose = chooser(policy)
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[None]] = deque()
        # uvloop's handle of what is due at once does not know when.
        self._timer: asyncio.Handle | None = None
        self._due = 0.0

    @property
    def inflight(self) -> int:
        return sum(instance.load.inflight for instance in self.all)

    async def acquire(
        self, request: Request = ANY_REQUEST, avoid: Instance | None = None
    ) -> Instance:
        """Waits, for as long as it takes, until an instance is up and has a place."""
        while True:
            now = self._loop.time()
            instance = self._pick(now, request, avoid)
            if instance is not None:
                instance.taken()
                return instance
            await self._wait(now)

    def _pick(self, now: float, request: Request, avoid: Instance | None) -> Instance | None:
        free = [instance for instance in self.all if instance.room(now) > 0]
        if len(free) > 1 and avoid is not None:
            free = [instance for instance in free if instance is not avoid]
        if len(free) > 1:
            return self._choose(free, request)
        return free[0] if free else None

    async def _wait(self, now: float) -> None:
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self._set_timer(now)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.wake()  # its turn must not be lost with it
            raise

    def wake(self) -> None:
        """To be called after anything that may have made room."""
        if not self._waiting:
            return
        now = self._loop.time()
        room = sum(max(0, instance.room(now)) for instance in self.all)
        while room > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1
        if self._waiting:
            self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        """Instances that are down come back by time alone, so time must wake the waiting.

        `now` is the moment at which there was no room: an instance that came up since then must
        not fall between the two looks at the clock.
        """
        soonest = min((i.down_until for i in self.all if i.down_until > now), default=None)
        if soonest is not None and (self._timer is None or self._due > soonest):
            self.close()
            self._due = soonest
            self._timer = self._loop.call_at(soonest, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.wake()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def outage(self) -> str:
        """Why no row can be sent now, empty where one can."""
        if any(not instance.failures for instance in self.all):
            return ""
        now = self._loop.time()
        return "; ".join(
            f"{instance.name}: {instance.reason}, next try in "
            f"{max(0.0, instance.down_until - now):.0f} s"
            for instance in self.all
        )


def _plain(name: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in name)[:300]
