"""Brings a call to an instance: waits for a free one, asks it, and tries another where it may."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from time import monotonic

from vllmdeploy.gateway.call import Answer, Call, failure_of
from vllmdeploy.gateway.fleet import Fleet, Group, Waiter
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.refusal import Refusal, try_again
from vllmdeploy.routing import queue, retry, rotation
from vllmdeploy.routing.failure import Failure, failure_of_status
from vllmdeploy.routing.retry import Attempt, Budget, Verdict
from vllmdeploy.routing.upstream import ANY_REQUEST, Request
from vllmdeploy.wire.faults import OutOfSockets, UpstreamError

_TICK_S = 0.1
_REDIRECTS = range(300, 400)
_NOBODY: frozenset[str] = frozenset()
_WORTH_PASSING_ON = (None, Failure.CLIENT_ERROR)


class Dispatcher:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.active = 0
        self.retries: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._budget = Budget(monotonic(), fleet.thresholds)
        self._ticker: asyncio.TimerHandle | None = None
        self._waiting = 0
        fleet.on_changed = self._pump

    async def ask(self, call: Call) -> Answer:
        """An answer that is worth passing on; `settle` must be called when it is done with."""
        self._budget.begun()
        instance = None if self._waiting else self._free(call, _NOBODY)
        if instance is None:
            instance = await self._lease(call, _NOBODY, None)
        if instance is None:
            raise self._nobody(call.group)
        first = await self._try(call, instance)
        if isinstance(first, Answer) and first.failure in _WORTH_PASSING_ON:
            return first
        return await self._again(call, instance, first)

    async def _again(self, call: Call, instance: Instance, last: Answer | Refusal) -> Answer:
        """What to do about a bad answer: ask others, or pass the last one on after all."""
        tried = _NOBODY
        suspicions = 0
        while True:
            failure = _failure(last)
            suspicions += retry.suspicious(failure)
            attempt = Attempt(
                failure, call.tries, replayable=call.replayable, suspicions=suspicions
            )
            if not self._may_retry(attempt, instance):
                break
            # One that is merely full may be asked again later: its health holds it back meanwhile.
            if failure is not Failure.BUSY:
                tried |= {instance.id}
            self.retries[failure.name.lower()] = self.retries.get(failure.name.lower(), 0) + 1
            await self._pause(attempt, last)
            following = await self._next(call, tried, last)
            if following is None:
                break
            instance = following
            last = await self._try(call, instance)
            if isinstance(last, Answer) and last.failure in _WORTH_PASSING_ON:
                return last
        if isinstance(last, Answer):
            return last
        raise last

    async def _next(
        self, call: Call, tried: frozenset[str], last: Answer | Refusal
    ) -> Instance | None:
        """A bad answer is kept until there is somebody else to ask: it may be the best we get."""
        try:
            instance = await self._lease(call, tried, last)
        except BaseException:
            self._let_go(last)
            raise
        if instance is not None:
            self._let_go(last)
        return instance

    async def _pause(self, attempt: Attempt, last: Answer | Refusal) -> None:
        pause = retry.delay(attempt, self.fleet.chance, self.fleet.thresholds)
        if pause:
            try:
                await asyncio.sleep(pause)
            except BaseException:
                self._let_go(last)
                raise

    def settle(self, answer: Answer, failure: Failure | None) -> None:
        """Once for each answer; `failure` is what went wrong after its head, if anything did."""
        if answer.failure is None or failure is not None:
            self._end(answer.instance, answer.began, failure)
        else:
            self._end(answer.instance, answer.began, answer.failure, counted=True)
        if failure is None:
            answer.instance.pool.give_back(answer.connection)
        else:
            answer.connection.close()

    async def _try(self, call: Call, instance: Instance) -> Answer | Refusal:
        """A Refusal where there is no answer; its code is the name of the failure."""
        call.tries += 1
        if call.share is None:
            call.at = instance.id
        else:
            call.go_to(instance.id)
        began = monotonic()
        try:
            connection, head = await instance.pool.ask(
                *call.message(instance), repeatable=call.replayable
            )
        except UpstreamError as error:
            failure = failure_of(error)
            refusal = _no_answer(failure, instance, error)
            self._count(instance, failure)
            self._end(instance, began, failure, counted=True)
            return refusal
        except OutOfSockets as error:
            self._end(instance, began, Failure.CLIENT_GONE)
            raise Refusal(503, "the gateway is out of sockets", fields=try_again(1)) from error
        except BaseException:
            self._end(instance, began, Failure.CLIENT_GONE)
            raise
        if head.status < 300:
            return Answer(instance, connection, head, began)
        redirected = head.status in _REDIRECTS
        failure_seen = Failure.GARBAGE if redirected else failure_of_status(head.status)
        if failure_seen is not None:
            self._count(instance, failure_seen)
        return Answer(instance, connection, head, began, failure_seen)

    # places

    async def _lease(
        self, call: Call, tried: frozenset[str], last: Answer | Refusal | None
    ) -> Instance | None:
        """None: there is nobody left to ask."""
        group = call.group
        if not group.serving or (tried and all(one.id in tried for one in group.serving)):
            return None
        if not len(group.room):
            instance = self._free(call, tried)
            if instance is not None:
                return instance
        if isinstance(last, Answer) and last.failure is not Failure.BUSY:
            return None
        return await self._wait(call, tried)

    def _free(self, call: Call, tried: frozenset[str]) -> Instance | None:
        request = call.request() if self.fleet.reads_requests else ANY_REQUEST
        return self._pick(call.group, request, tried, call.share.full if call.share else ())

    def _pick(
        self, group: Group, request: Request, tried: frozenset[str], avoid: Collection[str] = ()
    ) -> Instance | None:
        fleet = self.fleet
        free = rotation.available(
            group.serving, monotonic(), fleet.chance, tried=tried, limits=fleet.thresholds
        )
        if avoid:
            free = [one for one in free if one.id not in avoid] or free
        if not free:
            return None
        chosen = free[0] if len(free) == 1 else fleet.choose(free, request)
        chosen.load.begin(request.affinity.prefixes)
        chosen.requests += 1
        self.active += 1
        return chosen

    async def _wait(self, call: Call, tried: frozenset[str]) -> Instance:
        group = call.group
        now = monotonic()
        request = call.request()
        waiter = Waiter(self._loop.create_future(), request, tried)
        entry = group.room.enter(now, waiter, request)
        if isinstance(entry, queue.Refusal):
            raise Refusal(
                503, entry.value, code="overloaded", fields=try_again(group.room.retry_after_s())
            )
        self._tick_later()
        self._waiting += 1
        try:
            return await waiter.place
        except BaseException:
            left = group.room.leave(entry)
            place = waiter.place
            if not left and place.done() and not place.cancelled() and not place.exception():
                self._end(place.result(), now, Failure.CLIENT_GONE)
            raise
        finally:
            self._waiting -= 1
            call.queued_s += monotonic() - now

    def _pump(self, group: Group) -> None:
        """Gives free places to those who wait."""
        room = group.room
        now = monotonic()
        for entry, leaving in room.overdue(now):
            if not entry.item.place.done():
                fields = try_again(room.retry_after_s())
                refusal = Refusal(503, leaving.value, code="overloaded", fields=fields)
                entry.item.place.set_exception(refusal)
        while len(room):
            first = room.next(now)
            if first is None:
                return
            if first.item.place.done():
                continue
            instance = self._pick(group, first.request, first.item.tried)
            if instance is None:
                room.put_back(first)
                return
            first.item.place.set_result(instance)

    def _tick_later(self) -> None:
        if self._ticker is None:
            self._ticker = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Time alone ends waits, holds on full instances, and slow starts."""
        self._ticker = None
        waiting = [group for group in self.fleet.groups.values() if len(group.room)]
        for group in waiting:
            self._pump(group)
        if waiting:
            self._tick_later()

    # ends

    def _let_go(self, last: Answer | Refusal | None) -> None:
        if isinstance(last, Answer):
            self._end(last.instance, last.began, last.failure, counted=True)
            last.instance.pool.give_back(last.connection)

    def _end(
        self, instance: Instance, began: float, failure: Failure | None, *, counted: bool = False
    ) -> None:
        now = monotonic()
        self.active -= 1
        instance.load.end(now, None if failure is not None else now - began)
        if failure is None:
            self.fleet.changed(instance, instance.health.succeeded(now))
        elif not counted:
            self._count(instance, failure)
        if self._waiting:
            group = self.fleet.group_of(instance)
            if group is not None and len(group.room):
                self._pump(group)

    def _count(self, instance: Instance, failure: Failure) -> None:
        """At once, while the request may still be on its way elsewhere: the next must not wait
        for that to learn of it."""
        instance.failures[failure.value] = instance.failures.get(failure.value, 0) + 1
        group = self.fleet.group_of(instance)
        peers = group.peers() if group is not None else (instance.health,)
        change = instance.health.failed(monotonic(), failure, peers, self.fleet.chance)
        self.fleet.changed(instance, change)

    def _may_retry(self, attempt: Attempt, instance: Instance) -> bool:
        if retry.verdict(attempt, self.fleet.thresholds) is not Verdict.RETRY:
            return False
        largest = max(one.load.inflight for one in (instance, *self.fleet.instances.values()))
        # The failed request has left its instance already, and counts as part of what it held.
        return self._budget.take(monotonic(), active=self.active + 1, largest=largest + 1)

    def _nobody(self, group: Group) -> Refusal:
        reasons = "; ".join(
            f"{one.id}: {one.health.state.value}: {one.health.reason}" for one in group.members
        )
        message = f"no instance of {group.model} can answer: {reasons or 'none is registered'}"
        return Refusal(503, message, code="no_instance", fields=try_again(2))


def _failure(last: Answer | Refusal) -> Failure:
    if isinstance(last, Answer):
        return last.failure or Failure.CLIENT_ERROR
    return Failure[last.code.upper()]


def _no_answer(failure: Failure, instance: Instance, error: UpstreamError) -> Refusal:
    timed_out = failure in (Failure.FIRST_BYTE_TIMEOUT, Failure.CONNECT_TIMEOUT)
    return Refusal(504 if timed_out else 502, f"{instance.id}: {error}", code=failure.name.lower())
