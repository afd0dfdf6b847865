"""All instances behind the gateway, by model, and who of them serves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.gateway.address import Network, Pinned, parse_url, pin
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.journal import say
from vllmdeploy.gateway.refusal import Refusal, try_again
from vllmdeploy.gateway.spec import FleetSpec, UpstreamSpec
from vllmdeploy.routing import policies, rotation, scheduling
from vllmdeploy.routing.health import Health
from vllmdeploy.routing.queue import WaitingRoom
from vllmdeploy.routing.states import Change
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.routing.upstream import Request
from vllmdeploy.wire.deadlines import Deadlines


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in a waiting room, and who must not be given to it."""

    place: asyncio.Future[Instance]
    request: Request
    tried: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Group:
    """The instances that serve one model; `serving` is kept until somebody's health changes;
    `elsewhere` wait in the workers of this gateway, where it has some."""

    model: str
    room: WaitingRoom[Waiter]
    members: list[Instance] = field(default_factory=list[Instance])
    serving: Sequence[Instance] = ()
    elsewhere: int = 0

    @property
    def waiting(self) -> int:
        return len(self.room) + self.elsewhere

    def peers(self) -> Iterable[Health]:
        return (member.health for member in self.members)


class Fleet:
    def __init__(
        self,
        spec: FleetSpec,
        deadlines: Deadlines,
        thresholds: Thresholds,
        allowed: Sequence[Network] = (),
    ) -> None:
        self.thresholds = thresholds
        self.deadlines = deadlines
        self.instances: dict[str, Instance] = {}
        self.groups: dict[str, Group] = {}
        self.by_name: dict[str, Group] = {}
        self.on_added: Callable[[Instance], None] = _nothing
        self.on_removed: Callable[[Instance], None] = _nothing
        self.on_changed: Callable[[Group], None] = _nothing
        self.chance = random.random
        self._allowed = allowed
        self._loop = asyncio.get_running_loop()
        self.set_ways(spec)

    def set_ways(self, spec: FleetSpec) -> None:
        """Those who wait already stay in the order they were given."""
        self.policy = spec.policy
        self.scheduling = spec.scheduling
        self.default_model = spec.default_model
        self._way = scheduling.scheduling(spec.scheduling)
        policy = policies.create(spec.policy, self.chance)
        self.choose = policies.chooser(policy)
        self.reads_requests = policies.reads_requests(policy)
        for group in self.groups.values():
            if not len(group.room):
                group.room = self._room()

    async def apply(self, spec: FleetSpec) -> list[str]:
        """Makes the upstreams of a file what it says; those of the admin API stay as they are.

        Returns the problems; an upstream with a problem is left as it was.
        """
        self.set_ways(spec)
        wanted = {one.id for one in spec.upstreams}
        problems: list[str] = []
        for one in spec.upstreams:
            try:
                await self.put(one, origin="file")
            except VllmdeployError as error:
                problems.append(str(error))
        for instance in tuple(self.instances.values()):
            if instance.origin == "file" and instance.id not in wanted:
                self.remove(instance.id)
        return problems

    async def put(self, spec: UpstreamSpec, *, origin: str) -> Instance:
        known = self.instances.get(spec.id)
        if known is not None and known.same_as(spec):
            drained_before = known.spec.drain
            known.change(spec)
            known.origin = origin
            self.regroup()
            self._drain_as_asked(known, drained_before)
            return known
        pinned = await self._loop.run_in_executor(None, pin, parse_url(spec.url), self._allowed)
        instance = self._new(spec, pinned, origin)
        if known is not None:
            self.remove(known.id)
        self.instances[spec.id] = instance
        self.regroup()
        say("instance added", instance=spec.id, url=spec.url, generation=spec.generation)
        self.on_added(instance)
        self._drain_as_asked(instance, False)
        return instance

    def _drain_as_asked(self, instance: Instance, before: bool) -> None:
        """What somebody drained by the admin API stays so, whatever else of the file changes."""
        if instance.spec.drain:
            self.changed(instance, instance.health.drain(monotonic()))
        elif before:
            self.changed(instance, instance.health.resume(monotonic()))

    def remove(self, identity: str) -> None:
        """Requests in flight go on to their end; no new one is sent."""
        instance = self.instances.pop(identity)
        instance.pool.close()
        self.regroup()
        say("instance removed", instance=identity, inflight=instance.load.inflight)
        self.on_removed(instance)

    def regroup(self) -> None:
        """A group is kept by its canonical model, so that those who wait there are not lost."""
        found: dict[str, list[Instance]] = {}
        for instance in self.instances.values():
            if instance.models:
                found.setdefault(instance.model, []).append(instance)
        for model in tuple(self.groups):
            if model not in found and not len(self.groups[model].room):
                del self.groups[model]
        for group in self.groups.values():
            group.members = found.get(group.model, [])
        for model, members in found.items():
            if model not in self.groups:
                self.groups[model] = Group(model, self._room(), members)
        self.by_name = {
            name: group
            for group in self.groups.values()
            for member in group.members
            for name in member.models
        }
        self.by_name.update((model, group) for model, group in self.groups.items())
        for group in self.groups.values():
            self._refresh(group)

    def changed(self, instance: Instance, change: Change | None) -> None:
        if change is None:
            return
        say(
            "health",
            instance=instance.id,
            before=change.before.value,
            after=change.after.value,
            reason=change.reason,
        )
        group = self.group_of(instance)
        if group is not None:
            self._refresh(group)

    def group_of(self, instance: Instance) -> Group | None:
        return self.groups.get(instance.model)

    def group(self, model: str | None) -> Group:
        """Which instances a request is for, by the name it gives or by there being one only."""
        groups = self.by_name
        if model is None:
            model = self.default_model or None
        if model is not None:
            found = groups.get(model)
            if found is not None:
                return found
            self._may_be_served_by_a_silent_one()
            raise Refusal(
                404,
                f"the model {model!r} is not served here; served: {self._served()}",
                code="model_not_found",
            )
        if len(self.groups) == 1:
            return next(iter(self.groups.values()))
        if not self.groups:
            self._may_be_served_by_a_silent_one()
            raise Refusal(503, "no instance is registered", fields=try_again(5))
        raise Refusal(400, f"several models are served, name one in `model`: {self._served()}")

    def _may_be_served_by_a_silent_one(self) -> None:
        """An instance that was added without its models and has answered nothing may have any."""
        silent = [one.id for one in self.instances.values() if not one.models]
        if silent:
            reason = (
                "what is served is not known yet, still to answer: "
                f"{', '.join(silent)}; served: {self._served()}"
            )
            raise Refusal(503, reason, fields=try_again(2))

    def _served(self) -> str:
        return ", ".join(sorted(self.groups)) or "(nothing)"

    def _refresh(self, group: Group) -> None:
        group.serving = rotation.serving(group.members, self.thresholds)
        self.on_changed(group)

    def _room(self) -> WaitingRoom[Waiter]:
        limits = self.thresholds
        return WaitingRoom(self._way, length=limits.queue_length, timeout_s=limits.queue_timeout_s)

    def _new(self, spec: UpstreamSpec, pinned: Pinned, origin: str) -> Instance:
        return Instance(
            spec,
            pinned,
            self.deadlines,
            now=monotonic(),
            thresholds=self.thresholds,
            origin=origin,
        )


def _nothing(_: object) -> None:
    """Until somebody asks to be told."""
