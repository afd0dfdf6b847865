"""A gateway from its first moment to its last: sockets, files, signals, an end without a loss."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

from vllmdeploy.core.tasks import TaskGroup
from vllmdeploy.errors import UsageError, VllmdeployError
from vllmdeploy.gateway import doors, fleet_file
from vllmdeploy.gateway.access import Access
from vllmdeploy.gateway.access_log import AccessLog
from vllmdeploy.gateway.api.batches_run import Batches
from vllmdeploy.gateway.api.batches_store import BatchStore
from vllmdeploy.gateway.api.files_store import FileStore
from vllmdeploy.gateway.app import App
from vllmdeploy.gateway.dispatch import Dispatcher
from vllmdeploy.gateway.fleet import Fleet
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.journal import say, warn
from vllmdeploy.gateway.kept_file import KeptFile
from vllmdeploy.gateway.probe import Prober
from vllmdeploy.gateway.spec import NO_WORKER, GatewaySpec
from vllmdeploy.gateway.steering import Steering
from vllmdeploy.gateway.table import routes
from vllmdeploy.gateway.tls import Certificate
from vllmdeploy.gateway.watched import Watched
from vllmdeploy.wire.connection import ClientConnection
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.server import Server

_GARBAGE_EVERY = 50_000  # objects; the default of 700 looks through live connections all the time
_TAKEOVER_READY_S = 30.0
_TAKEOVER_REST_S = 5.0  # for the others, once one instance serves
_ACCEPTED_WITHIN = 5  # turns of the loop


class Running:
    """Everything of one gateway; `serve` returns when it was told to stop and has."""

    def __init__(self, spec: GatewaySpec) -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        self._spec = spec
        self._loop = loop
        self._stop = asyncio.Event()
        self._listening: list[asyncio.Server] = []
        self._access = Access(keyless=_needs_no_key(spec), networks=spec.allow)
        self.fleet = Fleet(spec.fleet, deadlines, spec.thresholds, spec.upstream_networks)
        self._prober = Prober(self.fleet)
        self.fleet.on_added = self._prober.add
        self.fleet.on_removed = self._prober.remove
        self._certificate = Certificate(spec.tls_cert, spec.tls_key) if spec.tls_cert else None
        self._log = AccessLog(spec.access_log, loop)
        kept = KeptFile(spec.state_file) if spec.state_file else None
        self._steering = Steering(self.fleet, spec.fleet, kept)
        self.gateway = Gateway(
            spec, self.fleet, Dispatcher(self.fleet), self._access, self._steering, loop
        )
        app = App(self.gateway, routes(in_worker=spec.worker != NO_WORKER), self._log)
        if spec.files_folder:
            self.gateway.files = FileStore(Path(spec.files_folder), spec.files_size)
            self.gateway.batches = Batches(BatchStore(self.gateway.files), app.inside)
        self._server = Server(app, deadlines, spec.limits)
        self.sockets: list[socket.socket] = []
        self.files: list[Watched] = []

    def stop(self) -> None:
        self._stop.set()

    async def serve(self) -> None:
        self.files = await self._read_files()
        self._open_files()
        await self._add_upstreams()
        predecessor = self._open_doors()
        if predecessor is not None:
            await self._ready()
        await self._listen(taking_over=predecessor is not None)
        if self.gateway.batches is not None:
            await self.gateway.batches.start()
        self._quieten_garbage_collector()
        say(
            "listening",
            sockets=[_name(one) for one in self.sockets],
            instances=len(self.fleet.instances),
        )
        if predecessor is not None:
            await self._loop.run_in_executor(None, predecessor.release)
        try:
            await self._until_stopped()
        finally:
            await self._end()

    async def _listen(self, *, taking_over: bool) -> None:
        for listener in self.sockets:
            self._listening.append(await self._accept_from(listener))

    async def _accept_from(self, listener: socket.socket) -> asyncio.Server:
        make = self._loop.create_server
        if self._certificate is None:
            return await make(self._connection, sock=listener)
        return await make(
            self._connection,
            sock=listener,
            ssl=self._certificate.context,
            ssl_handshake_timeout=self._spec.limits.head_s,
        )

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on while it serves."""
        return [file.watch() for file in self.files]

    async def _until_stopped(self) -> None:
        successor = None
        if self._spec.takeover:
            successor = doors.Successor(self._spec.takeover, self.sockets, self.stop)
        try:
            async with TaskGroup() as group:
                tasks = [group.create_task(work) for work in self._beside()]
                if successor is not None:
                    tasks.append(group.create_task(successor.wait()))
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            if successor is not None:
                successor.close()

    async def _end(self) -> None:
        self.gateway.draining = True
        await self._stop_listening()
        if self.gateway.batches is not None:
            await self.gateway.batches.close()
        say("draining", connections=len(self._server.connections))
        cut = await self._server.drain(self._spec.thresholds.drain_timeout_s)
        await self._prober.stop()
        for identity in tuple(self.fleet.instances):
            self.fleet.remove(identity)
        self._log.flush()
        say("stopped", connections_cut=cut)

    async def _stop_listening(self) -> None:
        """What was accepted just now has no transport yet, and asyncio before Python 3.13 forgets
        it when its server closes; whoever takes over accepts what comes from here on."""
        for listener in self.sockets:
            self._loop.remove_reader(listener.fileno())
        for _ in range(_ACCEPTED_WITHIN):
            await asyncio.sleep(0)
        for listening in self._listening:
            listening.close()

    async def _read_files(self) -> list[Watched]:
        spec = self._spec
        files = [
            Watched(path, take)
            for path, take in (
                (spec.keys_file, self._access.take_keys),
                (spec.admin_key_file, self._access.take_admin_keys),
                (spec.config_file, self._take_fleet),
            )
            if path
        ]
        if self._certificate is not None:
            pair = (spec.tls_cert, spec.tls_key)
            files += [Watched(path, self._certificate.take) for path in pair]
        for file in files:
            await file.start()
        if spec.keys_file and not self._access.has_keys and not spec.keyless:
            raise UsageError(f"{spec.keys_file} has no keys", hint="vllmdeploy keys add NAME")
        return files

    def _open_files(self) -> None:
        if self.gateway.files is None:
            return
        try:
            self.gateway.files.open()
        except OSError as error:
            raise UsageError(
                f"--files {self._spec.files_folder}: {error.strerror}",
                hint="name a folder that the gateway may write",
            ) from error

    async def _take_fleet(self, text: str, path: str) -> None:
        for problem in await self._steering.take(fleet_file.parse(text, path)):
            warn("upstream not taken over", why=problem)

    async def _add_upstreams(self) -> None:
        try:
            await self._steering.begin()
        except VllmdeployError as error:
            raise UsageError(str(error)) from error

    def _open_doors(self) -> doors.Predecessor | None:
        spec = self._spec
        predecessor = doors.take_over(spec.takeover) if spec.takeover else None
        if predecessor is not None:
            self.sockets = predecessor.sockets
        elif spec.descriptor >= 0:
            self.sockets = doors.given(spec.descriptor)
        else:
            self.sockets = doors.bind(spec.host, spec.port, spec.workers)
        return predecessor

    async def _ready(self) -> None:
        """The other gateway serves alone until this one knows its instances as well; one that is
        down keeps both waiting for a moment only."""
        began = monotonic()
        while (waited := monotonic() - began) < _TAKEOVER_READY_S:
            serving = [one.health.serving for one in self.fleet.instances.values()]
            if all(serving) or (any(serving) and waited >= _TAKEOVER_REST_S):
                return
            await asyncio.sleep(0.1)

    def _connection(self) -> ClientConnection:
        return ClientConnection(self._server)

    def _quieten_garbage_collector(self) -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE_EVERY, 20, 20)


async def run(spec: GatewaySpec, kind: Callable[[GatewaySpec], Running] = Running) -> None:
    running = kind(spec)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.stop)
    await running.serve()


def _needs_no_key(spec: GatewaySpec) -> bool:
    """Without a file of keys only this machine is listened to: see options.checked."""
    return spec.keyless or not spec.keys_file


def _name(listener: socket.socket) -> str:
    name: object = listener.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
