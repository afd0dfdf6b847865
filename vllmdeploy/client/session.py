"""What a client does within one event loop: answers, streams, raw responses, many at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vllmdeploy.client.answers import Answer, answer_of
from vllmdeploy.client.calls import Call, call_of
from vllmdeploy.client.errors import APIConnectionError, APIError, APITimeoutError
from vllmdeploy.client.exchange import Exchange, Reply, ask, open_stream
from vllmdeploy.client.fleet import Fleet, FleetSpec
from vllmdeploy.client.probes import Probes
from vllmdeploy.client.streams import AsyncStream
from vllmdeploy.routing.upstream import Request

T = TypeVar("T")

_WORKERS_PER_INSTANCE = 32


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    id: str
    address: str
    state: str
    reason: str
    models: tuple[str, ...]
    inflight: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Status:
    instances: tuple[InstanceStatus, ...]
    waiting: int

    @property
    def ready(self) -> int:
        return sum(one.state in ("ready", "suspect") for one in self.instances)


class Session:
    """Bound to the loop it was made in; `close` ends its checks and connections."""

    def __init__(self, spec: FleetSpec) -> None:
        self.loop = asyncio.get_running_loop()
        self.fleet = Fleet(spec)
        self.probes = Probes(self.fleet, spec.limits)
        self._spec = spec
        self._model = ""
        for instance in self.fleet.instances.values():
            self.probes.watch(instance)

    async def close(self) -> None:
        self.fleet.close()
        await self.probes.close()

    def status(self) -> Status:
        return Status(
            tuple(
                InstanceStatus(
                    id=one.upstream.id,
                    address=str(one.upstream.address),
                    state=one.health.state.value,
                    reason=one.health.reason,
                    models=one.models,
                    inflight=one.load.inflight,
                    latency_s=round(one.load.latency_s, 4),
                )
                for one in self.fleet.instances.values()
            ),
            waiting=len(self.fleet.lines),
        )

    async def answer(self, path: str, fields: Mapping[str, Any]) -> Answer:
        call, timeout = await self._call(path, fields)
        reply = await _within(timeout, ask(self.fleet, call, self._spec.limits))
        return parsed(reply)

    async def stream(self, path: str, fields: Mapping[str, Any]) -> AsyncStream:
        return AsyncStream(await self.raw(path, {**fields, "stream": True}))

    async def raw(self, path: str, fields: Mapping[str, Any]) -> Exchange:
        call, timeout = await self._call(path, fields)
        opened = open_stream(self.fleet, replace(call, stream=True), self._spec.limits)
        return await _within(timeout, opened)

    async def models(self) -> Answer:
        call = Call("/v1/models", b"", "", Request(), method="GET")
        reply = await ask(self.fleet, call, self._spec.limits)
        return parsed(reply)

    async def only_model(self) -> str:
        """The one model that is served; its other names have the same root."""
        if not self._model:
            names = self.fleet.models() or await self._served()
            if len(names) != 1:
                known = ", ".join(names) or "none"
                raise ValueError(f"name a model: {len(names)} are served: {known}")
            self._model = names[0]
        return self._model

    async def map(
        self,
        path: str,
        bodies: Iterable[Mapping[str, Any]],
        *,
        max_workers: int | None,
        return_errors: bool,
    ) -> list[Any]:
        """In the order of the bodies; as many at once as there are workers."""
        numbered = enumerate(bodies)
        found: dict[int, Answer | APIError] = {}

        async def work() -> None:
            for number, body in numbered:
                try:
                    found[number] = await self.answer(path, body)
                except APIError as error:
                    if not return_errors:
                        raise
                    found[number] = error

        count = max_workers or _WORKERS_PER_INSTANCE * max(1, len(self.fleet.instances))
        workers = [asyncio.ensure_future(work()) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [found[number] for number in sorted(found)]

    async def _served(self) -> tuple[str, ...]:
        by_root: dict[str, str] = {}
        for model in (await self.models()).data:
            root = str(model["root"] if "root" in model else model["id"])
            by_root.setdefault(root, str(model["id"]))
        return tuple(by_root.values())

    async def _call(self, path: str, fields: Mapping[str, Any]) -> tuple[Call, float | None]:
        """What the SDK takes beside the body is taken out of it."""
        body = dict(fields)
        headers: Mapping[str, str] | None = body.pop("extra_headers", None)
        timeout: float | None = body.pop("timeout", None)
        body.update(body.pop("extra_body", None) or {})
        if body.get("model") is None:
            body["model"] = await self.only_model()
        try:
            return call_of(path, body, headers=headers), timeout
        except (TypeError, ValueError) as error:
            if isinstance(error, json.JSONDecodeError):
                raise
            raise TypeError(f"{path}: the request cannot be written as JSON: {error}") from error


def parsed(reply: Reply) -> Answer:
    try:
        return answer_of(reply.body)
    except ValueError as error:
        raise APIConnectionError(f"{reply.instance}: the answer is no JSON: {error}") from error


async def _within(timeout: float | None, work: Coroutine[Any, Any, T]) -> T:
    try:
        return await asyncio.wait_for(work, timeout)
    except asyncio.TimeoutError as error:
        raise APITimeoutError(f"no answer within {timeout:g} s") from error
