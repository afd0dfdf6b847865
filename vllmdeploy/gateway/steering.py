"""What administrators ask for while the gateway runs: in force at once, and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.gateway.fleet import Fleet
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.journal import warn
from vllmdeploy.gateway.kept import Kept, Ways, mark_of, ways_of
from vllmdeploy.gateway.kept_file import KeptFile
from vllmdeploy.gateway.spec import FleetSpec, UpstreamSpec


class Steering:
    """`given`: what the flags say; the watched file is told to `take`. Nothing is kept without a
    file to keep it in."""

    def __init__(self, fleet: Fleet, given: FleetSpec, file: KeptFile | None) -> None:
        self._fleet = fleet
        self._flags = given.upstreams
        self._file = file
        self.on_changed: Callable[[], Awaitable[None]] = _nobody
        self._told = replace(given, upstreams=())
        self._kept = Kept() if file is None else file.read()
        self._writer = ThreadPoolExecutor(1, "kept")  # one write after another, the newest last

    # what the gateway is told at its start, and by its file later on

    async def take(self, spec: FleetSpec) -> list[str]:
        """Makes the fleet what the file says and administrators changed; returns the problems."""
        self._told = spec
        before, self._kept = self._kept, self._kept.within(spec, self._flags)
        self._set_ways()
        problems = await self._fleet.apply(
            replace(self._changed(spec), upstreams=self._kept.wanted(spec.upstreams))
        )
        self._drain_again()
        await self.on_changed()
        if self._kept != before:
            await self._write()
        return problems

    async def begin(self) -> None:
        """Once, after the file: adds the instances of the flags, then those of administrators."""
        self._kept = self._kept.within(self._told, self._flags)
        for one in self._kept.wanted(self._flags):
            await self._fleet.put(one, origin="flag")
        for one in self._kept.added:
            try:
                await self._fleet.put(one, origin="admin")
            except VllmdeployError as error:
                warn("upstream not taken over", why=str(error))
        self._set_ways()
        self._drain_again()

    # what administrators ask for; each returns a warning where it will not outlive the gateway

    async def add(self, spec: UpstreamSpec) -> tuple[Instance, str]:
        instance = await self._fleet.put(spec, origin="admin")
        self._kept = self._kept.add(spec)
        return instance, await self.keep()

    async def remove(self, instance: Instance) -> str:
        self._fleet.remove(instance.id)
        self._kept = self._kept.remove(instance.id, (*self._told.upstreams, *self._flags))
        return await self.keep()

    async def drain(self, instance: Instance) -> str:
        self._fleet.changed(instance, instance.health.drain(monotonic()))
        self._kept = self._kept.drain(instance.spec)
        return await self.keep()

    async def resume(self, instance: Instance) -> str:
        self._fleet.changed(instance, instance.health.resume(monotonic()))
        self._kept = self._kept.resume(instance.id)
        return await self.keep()

    async def set_ways(self, ways: Ways) -> str:
        """Raises UsageError for a name that nobody knows, and changes nothing then."""
        self._fleet.set_ways(FleetSpec((), *ways))
        self._kept = replace(self._kept, ways=ways, over=ways_of(self._told))
        return await self.keep()

    async def keep(self) -> str:
        await self.on_changed()
        return await self._write()

    async def _write(self) -> str:
        if self._file is None:
            return ""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._file.write, self._kept)
        except VllmdeployError as error:
            why = error.message  # its hint is meant for a command that can be run again
            warn("changes of administrators not kept", why=why)
            return f"in force until the gateway restarts, for it could not be kept: {why}"
        return ""

    def _changed(self, spec: FleetSpec) -> FleetSpec:
        ways = self._kept.ways
        return spec if ways is None else FleetSpec(spec.upstreams, *ways)

    def _set_ways(self) -> None:
        try:
            self._fleet.set_ways(self._changed(self._told))
        except VllmdeployError as error:
            warn("the kept policy is not known here", why=str(error))
            self._kept = replace(self._kept, ways=None, over=None)

    def _drain_again(self) -> None:
        now = monotonic()
        for instance in tuple(self._fleet.instances.values()):
            if mark_of(instance.spec) in self._kept.drained:
                self._fleet.changed(instance, instance.health.drain(now))


async def _nobody() -> None:
    """Until somebody asks to be told."""
