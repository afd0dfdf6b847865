"""Asks each instance how it is: its health page, its counters, and one token now and then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from time import monotonic

from vllmdeploy.gateway.engine_page import PREFIX, observed
from vllmdeploy.gateway.fleet import Fleet
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.journal import bug
from vllmdeploy.gateway.jsonvalue import as_int, as_list, as_object, loads
from vllmdeploy.routing.health import Health
from vllmdeploy.routing.states import SERVING, Change
from vllmdeploy.wire.faults import NeverSent, OutOfSockets, UpstreamError
from vllmdeploy.wire.head import Field
from vllmdeploy.wire.limits import MIB
from vllmdeploy.wire.write import request_head

_PAGE_MAX = 16 * MIB
_MODELS_AGAIN_S = 30.0
_CLOSE: Field = (b"connection", b"close")
_JSON: Field = (b"content-type", b"application/json")
# The smallest request of each kind of model; the first that is not refused is the one to repeat.
_CANARIES: tuple[tuple[str, dict[str, object]], ...] = (
    ("/v1/completions", {"prompt": "Hi", "max_tokens": 1, "temperature": 0}),
    ("/v1/embeddings", {"input": "Hi"}),
    ("/score", {"text_1": "Hi", "text_2": "Hi"}),
)
_BUSY = 503
_NOT_FOUND_TO_US = (400, 404, 405, 422, 501)


class Prober:
    """One task for each instance, begun and ended with it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._loop = asyncio.get_running_loop()
        self._probes: dict[Instance, tuple[_Probe, asyncio.Task[None]]] = {}

    def add(self, instance: Instance) -> None:
        probe = _Probe(self._fleet, instance)
        task = self._loop.create_task(probe.run())
        task.add_done_callback(_report)
        self._probes[instance] = probe, task

    def remove(self, instance: Instance) -> None:
        found = self._probes.pop(instance, None)
        if found is not None:
            probe, task = found
            probe.ended = True
            task.cancel()

    async def stop(self) -> None:
        tasks = tuple(task for _, task in self._probes.values())
        for instance in tuple(self._probes):
            self.remove(instance)
        await asyncio.gather(*tasks, return_exceptions=True)


class _Probe:
    def __init__(self, fleet: Fleet, instance: Instance) -> None:
        self._fleet = fleet
        self._instance = instance
        self._loop = asyncio.get_running_loop()
        self._kind = 0
        self._models_at = -_MODELS_AGAIN_S
        self._canary: asyncio.Task[None] | None = None
        # Before Python 3.12 wait_for loses a cancellation that comes together with the answer.
        self.ended = False

    async def run(self) -> None:
        health = self._instance.health
        try:
            while not self.ended:
                if await self._check():
                    await self._learn_models()
                    await self._read_counters()
                    self._consider_canary()
                now = monotonic()
                self._tell(health.drained(now, self._instance.load.inflight))
                await asyncio.sleep(health.check_delay(self._fleet.chance))
        finally:
            if self._canary is not None:
                self._canary.cancel()

    async def _check(self) -> bool:
        health, timeout = self._instance.health, self._fleet.thresholds.check_timeout_s
        began = monotonic()
        try:
            status, _ = await self._get("/health", timeout)
        except UpstreamError as error:
            refused = isinstance(error, NeverSent) and error.refused
            self._failed_check(str(error), began, port_closed=refused)
            return False
        except asyncio.TimeoutError:
            self._failed_check(f"/health took longer than {timeout:g} s", began, port_closed=False)
            return False
        except OutOfSockets:
            return False  # says nothing of the instance
        if status != 200:
            self._failed_check(f"/health answered {status}", began, port_closed=False)
            return False
        self._tell(health.check_passed(monotonic()))
        return True

    def _failed_check(self, reason: str, began: float, *, port_closed: bool) -> None:
        health = self._instance.health
        change = health.check_failed(monotonic(), reason, began=began, port_closed=port_closed)
        self._out(change, reason)

    async def _learn_models(self) -> None:
        now = monotonic()
        if now - self._models_at < _MODELS_AGAIN_S:
            return
        try:
            status, body = await self._get("/v1/models", self._fleet.thresholds.check_timeout_s)
            listed = as_list((as_object(loads(body)) or {}).get("data")) or []
        except (UpstreamError, OutOfSockets, asyncio.TimeoutError, ValueError):
            return  # asked again with the next check; /health is what counts
        cards = [as_object(one) or {} for one in listed]
        names = tuple(name for card in cards if isinstance(name := card.get("id"), str))
        if status != 200 or not names:
            return
        self._models_at = now
        instance = self._instance
        instance.max_model_len = as_int(cards[0].get("max_model_len")) or 0
        if names != instance.discovered:
            instance.discovered = names
            self._fleet.regroup()

    async def _read_counters(self) -> None:
        instance = self._instance
        try:
            status, page = await self._get("/metrics", self._fleet.thresholds.check_timeout_s)
        except (UpstreamError, OutOfSockets, asyncio.TimeoutError):
            return  # an engine may have none; the checks and the canary judge it then
        if status != 200 or PREFIX not in page:
            return
        now = monotonic()
        seen = observed(page, now)
        if seen is None:
            return
        instance.engine_page = page
        instance.load.poll(seen)
        change = instance.health.progressed(
            now,
            running=seen.running,
            tokens=seen.generated_tokens,
            peers=self._peers(),
            chance=self._fleet.chance,
        )
        self._out(change, instance.health.reason)

    def _consider_canary(self) -> None:
        """Beside the checks: a hung engine keeps a canary waiting for longer than a check may."""
        if self._canary is not None and not self._canary.done():
            return
        if self._instance.model and self._instance.health.wants_canary(monotonic()):
            self._canary = self._loop.create_task(self._send_canary())
            self._canary.add_done_callback(_report)

    async def _send_canary(self) -> None:
        began = monotonic()
        timeout = self._fleet.thresholds.canary_timeout_s
        try:
            status = await self._first_that_is_known(timeout)
        except (UpstreamError, asyncio.TimeoutError) as error:
            self._canary_failed(str(error) or f"no token within {timeout:g} s", began)
            return
        except OutOfSockets:
            return
        if status == _BUSY:
            return  # a full queue is an answer, and no verdict
        if status >= 500:
            self._canary_failed(f"answered {status}", began)
        else:
            self._tell(self._instance.health.canary_passed(monotonic()))

    async def _first_that_is_known(self, timeout: float) -> int:
        status = 0
        for kind in range(self._kind, len(_CANARIES)):
            path, body = _CANARIES[kind]
            status = await self._post(path, {"model": self._instance.model, **body}, timeout)
            if status not in _NOT_FOUND_TO_US:
                self._kind = kind
                return status
        return status

    def _canary_failed(self, reason: str, began: float) -> None:
        change = self._instance.health.canary_failed(
            monotonic(), reason, self._peers(), self._fleet.chance, began=began
        )
        self._out(change, reason)

    def _out(self, change: Change | None, reason: str) -> None:
        """Those who wait for an instance that was found dead or hung may try another."""
        self._tell(change)
        if change is not None and change.after not in SERVING:
            self._instance.pool.abandon(reason)

    def _tell(self, change: Change | None) -> None:
        self._fleet.changed(self._instance, change)

    def _peers(self) -> Iterable[Health]:
        group = self._fleet.group_of(self._instance)
        return group.peers() if group is not None else (self._instance.health,)

    async def _get(self, path: str, timeout: float) -> tuple[int, bytes]:
        return await asyncio.wait_for(self._ask("GET", path, b""), timeout)

    async def _post(self, path: str, body: dict[str, object], timeout: float) -> int:
        asking = self._ask("POST", path, json.dumps(body).encode())
        return (await asyncio.wait_for(asking, timeout))[0]

    async def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """On a connection of its own: an open one would say nothing of the port."""
        instance = self._instance
        fields = [_CLOSE, *instance.authorization]
        if body:
            fields += [_JSON, (b"content-length", b"%d" % len(body))]
        target = instance.upstream.address.prefix + path
        message = request_head(method, target, instance.host, fields) + body
        connection, head = await instance.probes.ask(message, repeatable=False)
        try:
            return head.status, await connection.collect(_PAGE_MAX)
        finally:
            connection.close()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        bug("a bug in the probes", error)
