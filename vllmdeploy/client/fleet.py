"""All instances of one client: finds a place for each call and takes note of how it went."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vllmdeploy.client.calls import Call
from vllmdeploy.client.errors import APIConnectionError
from vllmdeploy.client.instance import Instance, Resolve, look_up
from vllmdeploy.client.lines import Lines
from vllmdeploy.routing import policies
from vllmdeploy.routing.failure import Failure
from vllmdeploy.routing.health import Health
from vllmdeploy.routing.retry import Budget
from vllmdeploy.routing.rotation import available, serving
from vllmdeploy.routing.scheduling import scheduling
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds
from vllmdeploy.routing.upstream import Upstream
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.limits import UpstreamTimes


@dataclass(frozen=True, slots=True)
class FleetSpec:
    upstreams: tuple[Upstream, ...] = ()
    routing: str = "round_robin"
    scheduling: str = "adaptive"
    key: str = ""
    timeout_s: float = 600.0
    limits: Thresholds = DEFAULTS
    resolve: Resolve = look_up


class Fleet:
    """Lives in one event loop. Whoever got an instance from `place` gives it back by `ended`."""

    def __init__(self, spec: FleetSpec) -> None:
        self._loop = asyncio.get_running_loop()
        self._spec = spec
        self._times = UpstreamTimes(
            connect_s=spec.limits.connect_timeout_s,
            first_byte_s=spec.timeout_s,
            idle_s=min(spec.limits.idle_timeout_s, spec.timeout_s),
        )
        self._deadlines = Deadlines(self._loop)
        self._pick = policies.chooser(policies.create(spec.routing))
        self._budget = Budget(self._loop.time(), spec.limits)
        self.lines = Lines(scheduling(spec.scheduling), spec.limits, self._chosen)
        self.instances: dict[str, Instance] = {}
        for upstream in spec.upstreams:
            self.add(upstream)

    def add(self, upstream: Upstream) -> Instance:
        """An id that is there already is replaced."""
        self.remove(upstream.id)
        instance = Instance(
            upstream,
            key=self._spec.key,
            deadlines=self._deadlines,
            times=self._times,
            limits=self._spec.limits,
            resolve=self._spec.resolve,
        )
        self.instances[upstream.id] = instance
        return instance

    def remove(self, id_: str) -> None:
        instance = self.instances.pop(id_, None)
        if instance is not None:
            instance.close()

    def close(self) -> None:
        self.lines.close()
        for instance in self.instances.values():
            instance.close()

    async def place(self, call: Call, tried: Collection[str]) -> Instance | None:
        """Waits for a free place. None: everybody who serves was tried."""
        members = self._serving(call.model)
        if not members:
            raise APIConnectionError(
                f"no instance serves {call.model or 'requests'}: {self.reasons()}"
            )
        if tried and all(member.upstream.id in tried for member in members):
            return None
        if not tried:
            self._budget.begun()
        if not self.lines.waits(call.model):
            chosen = self._chosen(call, tried)
            if chosen is not None:
                return chosen
        return await self.lines.wait(call, tried, self.unused)

    def ended(
        self, instance: Instance, began: float, failure: Failure | None, *, whole: bool = True
    ) -> None:
        """`whole` is False for an answer that its caller did not want to the end."""
        now = self._loop.time()
        if failure is None:
            instance.load.end(now, now - began if whole else None)
            instance.health.succeeded(now)
        else:
            instance.load.end(now)
            instance.health.failed(now, failure, self.peers(instance), random.random, began=began)
        self.lines.serve()

    def unused(self, instance: Instance) -> None:
        instance.load.end(self._loop.time())
        self.lines.serve()

    def may_retry(self) -> bool:
        """Asked before the failed call has ended, so that its instance still counts it."""
        inflight = [one.load.inflight for one in self.instances.values()]
        return self._budget.take(
            self._loop.time(), active=sum(inflight), largest=max(inflight, default=0)
        )

    def peers(self, instance: Instance) -> list[Health]:
        """All that share a model with it."""
        return [
            other.health
            for other in self.instances.values()
            if not (instance.models and other.models)
            or not set(instance.models).isdisjoint(other.models)
        ]

    def models(self) -> tuple[str, ...]:
        """What was registered, each once; an instance registered without models names none."""
        return tuple(dict.fromkeys(m for one in self.instances.values() for m in one.models))

    def reasons(self) -> str:
        words = (
            f"{one.upstream.id} is {one.health.state.value}"
            + (f" ({one.health.reason})" if one.health.reason else "")
            for one in self.instances.values()
        )
        return ", ".join(words) or "none is registered"

    def _serving(self, model: str) -> Sequence[Instance]:
        members = [
            one
            for one in self.instances.values()
            if not model or not one.models or model in one.models
        ]
        return serving(members, self._spec.limits)

    def _chosen(self, call: Call, tried: Collection[str]) -> Instance | None:
        free = available(
            self._serving(call.model),
            self._loop.time(),
            random.random,
            tried=tried,
            limits=self._spec.limits,
        )
        if not free:
            return None
        chosen = self._pick(free, call.request)
        chosen.load.begin(call.request.affinity.prefixes)
        return chosen
