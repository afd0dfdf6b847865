"""The control plane as a Python object: instances are registered, requests are submitted to all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vllmdeploy.client.answers import Answer
from vllmdeploy.client.calls import Call, call_of
from vllmdeploy.client.errors import APITimeoutError
from vllmdeploy.client.exchange import ask, open_stream
from vllmdeploy.client.fleet import FleetSpec
from vllmdeploy.client.session import Session, Status, parsed
from vllmdeploy.client.streams import AsyncStream
from vllmdeploy.errors import UsageError
from vllmdeploy.routing import policies
from vllmdeploy.routing.address import parse_address
from vllmdeploy.routing.scheduling import scheduling
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds
from vllmdeploy.routing.upstream import Upstream

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ExecutionInstance:
    """One vLLM server. `cost` is a price per hour; without one, its number of cards stands in."""

    instance_id: str
    host: str
    port: int
    model_name: str
    tensor_parallel_size: int = 1
    gpu_count: int = 1
    weight: float = 1.0
    cost: float | None = None
    max_concurrent: int = 256

    def upstream(self) -> Upstream:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if not self.instance_id or not self.model_name:
            raise UsageError("an instance needs an instance_id and a model_name")
        if self.tensor_parallel_size > self.gpu_count:
            raise UsageError(
                f"instance {self.instance_id}: tensor_parallel_size {self.tensor_parallel_size} "
                f"is more than its {self.gpu_count} cards"
            )
        return Upstream(
            self.instance_id,
            parse_address(f"http://{host}:{self.port}"),
            models=(self.model_name,),
            weight=self.weight,
            cost=float(self.gpu_count) if self.cost is None else self.cost,
            limit=self.max_concurrent,
        )


@dataclass(frozen=True, slots=True)
class RequestMetadata:
    """As in vLLM a lower `priority` goes first. `deadline_ms` counts from the submission."""

    request_id: str
    prompt: str
    max_tokens: int = 256
    model: str | None = None
    priority: int = 0
    deadline_ms: int | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """In a stream, `text` is the next piece, and `finish_reason` is None until the last one."""

    request_id: str
    text: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    instance_id: str


class ControlPlaneManager:
    def __init__(
        self,
        scheduling_policy: str = "adaptive",
        routing_strategy: str = "load_balanced",
        *,
        api_key: str = "",
        thresholds: Thresholds = DEFAULTS,
    ) -> None:
        policies.create(routing_strategy)
        scheduling(scheduling_policy)
        self._spec = FleetSpec(
            routing=routing_strategy,
            scheduling=scheduling_policy,
            key=api_key,
            limits=thresholds,
        )
        self._upstreams: dict[str, Upstream] = {}
        self._session: Session | None = None

    def register_instance(self, instance: ExecutionInstance) -> None:
        """Before `start` or while it runs; an instance_id that is known is replaced."""
        upstream = instance.upstream()
        known = self._upstreams.get(upstream.id)
        if known is not None:
            upstream = replace(upstream, generation=known.generation + 1)
        self._upstreams[upstream.id] = upstream
        if self._session is not None:
            self._session.probes.watch(self._session.fleet.add(upstream))

    def unregister_instance(self, instance_id: str) -> None:
        """What is in flight there ends; nothing new is sent."""
        if self._upstreams.pop(instance_id, None) is None:
            raise UsageError(f"no instance {instance_id!r} is registered")
        if self._session is not None:
            self._session.fleet.remove(instance_id)

    def drain_instance(self, instance_id: str) -> None:
        session = self._running()
        self._known(instance_id)
        session.fleet.instances[instance_id].health.drain(session.loop.time())

    def resume_instance(self, instance_id: str) -> None:
        session = self._running()
        self._known(instance_id)
        session.fleet.instances[instance_id].health.resume(session.loop.time())

    async def start(self) -> None:
        """Returns when every instance was asked once how it is; none needs to be up already."""
        if self._session is not None:
            raise UsageError("the control plane runs already")
        spec = replace(self._spec, upstreams=tuple(self._upstreams.values()))
        self._session = Session(spec)
        await self._session.probes.check_all()

    async def stop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> ControlPlaneManager:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def status(self) -> Status:
        return self._running().status()

    async def submit_request(self, request: RequestMetadata) -> Completion:
        """The whole answer. The prompt is completed as it is, without a chat template."""
        session = self._running()
        call = self._call(request, session, stream=False)
        reply = await _in_time(request, ask(session.fleet, call, self._spec.limits))
        return _completion(request, parsed(reply), reply.instance)

    async def stream_request(self, request: RequestMetadata) -> AsyncGenerator[Completion, None]:
        """The answer piece by piece; leaving early ends the generation."""
        session = self._running()
        call = self._call(request, session, stream=True)
        opened = open_stream(session.fleet, call, self._spec.limits)
        async with AsyncStream(await _in_time(request, opened)) as stream:
            async for chunk in stream:
                yield _completion(request, chunk, stream.instance)

    def _call(self, request: RequestMetadata, session: Session, *, stream: bool) -> Call:
        fields: dict[str, Any] = {
            "model": self._model(request),
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
        }
        if stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        deadline = None
        if request.deadline_ms is not None:
            deadline = session.loop.time() + request.deadline_ms / 1000
        return call_of(
            "/v1/completions",
            fields,
            session=request.session or "",
            priority=request.priority,
            deadline=deadline,
        )

    def _model(self, request: RequestMetadata) -> str:
        models = dict.fromkeys(m for one in self._upstreams.values() for m in one.models)
        if request.model is None and len(models) == 1:
            return next(iter(models))
        if request.model is None or request.model not in models:
            wanted = "name a model" if request.model is None else f"no model {request.model!r}"
            raise ValueError(f"{wanted}: registered are {', '.join(models) or 'none'}")
        return request.model

    def _running(self) -> Session:
        if self._session is None:
            raise UsageError("the control plane does not run", hint="await start() first")
        return self._session

    def _known(self, instance_id: str) -> None:
        if instance_id not in self._upstreams:
            raise UsageError(f"no instance {instance_id!r} is registered")


async def _in_time(request: RequestMetadata, work: Coroutine[Any, Any, T]) -> T:
    if request.deadline_ms is None:
        return await work
    try:
        return await asyncio.wait_for(work, request.deadline_ms / 1000)
    except asyncio.TimeoutError as error:
        words = f"request {request.request_id}: not answered within {request.deadline_ms} ms"
        raise APITimeoutError(words) from error


def _completion(request: RequestMetadata, answer: Answer, instance_id: str) -> Completion:
    choice: Any = next(iter(answer.choices), None)
    usage: Any = answer.usage
    return Completion(
        request_id=request.request_id,
        text="" if choice is None else choice.text or "",
        finish_reason=None if choice is None else choice.finish_reason,
        usage=None if usage is None else usage.to_dict(),
        instance_id=instance_id,
    )
