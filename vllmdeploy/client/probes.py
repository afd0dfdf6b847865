"""Active checks of a client's instances: only of those in use or out of rotation, so that an idle
client is silent."""

from __future__ import annotations

import asyncio
import json
import random

from vllmdeploy.client.calls import failure_of
from vllmdeploy.client.fleet import Fleet
from vllmdeploy.client.instance import Instance
from vllmdeploy.routing.engine_metrics import observed_of
from vllmdeploy.routing.failure import Failure
from vllmdeploy.routing.states import SERVING, Change, State
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.wire.faults import UpstreamError

_PAGE_MAX = 8 << 20


class Probes:
    """One task for each instance; ends with `close`, or when its instance is replaced."""

    def __init__(self, fleet: Fleet, limits: Thresholds) -> None:
        self._fleet = fleet
        self._limits = limits
        self._tasks: dict[Instance, asyncio.Task[None]] = {}
        # Before Python 3.12 wait_for loses a cancellation that comes together with the answer.
        self._closed = False

    def watch(self, instance: Instance) -> None:
        self._tasks[instance] = asyncio.ensure_future(self._watch(instance))

    async def check_all(self) -> None:
        await asyncio.gather(*(self.check(one) for one in self._fleet.instances.values()))

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    async def _watch(self, instance: Instance) -> None:
        health = instance.health
        while self._wanted(instance):
            await asyncio.sleep(health.check_delay(random.random))
            health.drained(_now(), instance.load.inflight)
            if health.state is State.READY and not instance.load.inflight:
                continue
            await self.check(instance)
            if self._wanted(instance) and health.wants_canary(_now()):
                await self._canary(instance)
            self._fleet.lines.serve()
        self._tasks.pop(instance, None)

    def _wanted(self, instance: Instance) -> bool:
        return not self._closed and self._fleet.instances.get(instance.upstream.id) is instance

    async def check(self, instance: Instance) -> None:
        began = _now()
        try:
            status, _ = await self._get(instance, "/health", self._limits.check_timeout_s)
        except (UpstreamError, asyncio.TimeoutError) as error:
            closed = isinstance(error, UpstreamError) and failure_of(error) is Failure.REFUSED
            words = str(error) or "no answer to /health"
            change = instance.health.check_failed(_now(), words, began=began, port_closed=closed)
            _out(instance, change)
            return
        # A server without /health is another kind of server, and it answers.
        if status == 200 or status in (404, 405):
            instance.health.check_passed(_now())
            await self._load(instance)
        else:
            words = f"/health says {status}"
            _out(instance, instance.health.check_failed(_now(), words, began=began))

    async def _load(self, instance: Instance) -> None:
        try:
            status, page = await self._get(instance, "/metrics", self._limits.check_timeout_s)
        except (UpstreamError, asyncio.TimeoutError):
            return  # load is worth knowing; that there is none is no fault
        seen = observed_of(page.decode("utf-8", "replace"), _now()) if status == 200 else None
        if seen is None:
            return
        instance.load.poll(seen)
        change = instance.health.progressed(
            _now(),
            running=seen.running,
            tokens=seen.generated_tokens,
            peers=self._fleet.peers(instance),
            chance=random.random,
        )
        _out(instance, change)

    async def _canary(self, instance: Instance) -> None:
        """One token. An engine that says no to the question has answered."""
        began = _now()
        try:
            status = await asyncio.wait_for(
                self._one_token(instance), self._limits.canary_timeout_s
            )
        except (UpstreamError, asyncio.TimeoutError) as error:
            self._canary_failed(instance, str(error) or "no answer in time", began)
            return
        if status == 503:
            return  # full: says neither
        if status >= 500:
            self._canary_failed(instance, f"status {status}", began)
        else:
            instance.health.canary_passed(_now())

    def _canary_failed(self, instance: Instance, reason: str, began: float) -> None:
        peers = self._fleet.peers(instance)
        _out(
            instance,
            instance.health.canary_failed(_now(), reason, peers, random.random, began=began),
        )

    async def _one_token(self, instance: Instance) -> int:
        model = instance.models[0] if instance.models else await self.served_model(instance)
        fields = {"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}
        body = json.dumps(fields).encode()
        connection, head = await instance.ask("POST", "/v1/completions", body)
        try:
            await connection.collect(_PAGE_MAX)
        finally:
            instance.give_back(connection)
        return head.status

    async def served_model(self, instance: Instance) -> str:
        status, page = await self._get(instance, "/v1/models", self._limits.check_timeout_s)
        try:
            return str(json.loads(page)["data"][0]["id"]) if status == 200 else ""
        except (ValueError, LookupError, TypeError):
            return ""

    async def _get(self, instance: Instance, path: str, timeout_s: float) -> tuple[int, bytes]:
        return await asyncio.wait_for(_page(instance, path), timeout_s)


def _out(instance: Instance, change: Change | None) -> None:
    """Who waits for an instance that was found dead or hung tries another."""
    if change is not None and change.after not in SERVING:
        instance.abandon(change.reason)


async def _page(instance: Instance, path: str) -> tuple[int, bytes]:
    connection, head = await instance.ask("GET", path)
    try:
        return head.status, await connection.collect(_PAGE_MAX)
    finally:
        instance.give_back(connection)


def _now() -> float:
    return asyncio.get_running_loop().time()
