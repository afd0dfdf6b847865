"""A real gateway on a real port of this machine, in the test's own loop, and a plain client."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from tests.support.upstream import FakeEngine
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.run import Running
from vllmdeploy.gateway.spec import FleetSpec, GatewaySpec, UpstreamSpec
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.wire.limits import ClientLimits

# Only a hang runs into it; nothing is judged by how long it took.
ALIVE_S = 60.0
_TURN_S = 0.005
COMPLETIONS = "/v1/completions"

# One check and no canary, and nobody who was ejected comes back: only requests tell.
QUIET = Thresholds(
    check_interval_s=600.0,
    check_interval_out_s=600.0,
    check_timeout_s=ALIVE_S,  # a busy machine is no fault: nobody would look again in time
    rise=1,
    canary=False,
    ejection_s=600.0,
    ejection_max_s=600.0,
    drain_timeout_s=0.0,
)


@dataclass
class Reply:
    status: int
    fields: dict[str, str]
    body: bytes
    raw: bytes = field(repr=False)

    @property
    def whole(self) -> bool:
        """Whether the message has the end that its head promised."""
        if self.fields.get("transfer-encoding") == "chunked":
            return self.raw.endswith(b"\r\n0\r\n\r\n")
        return len(self.body) == int(self.fields["content-length"])


@dataclass
class Started:
    running: Running
    port: int

    def instance(self, engine: FakeEngine) -> Instance:
        return self.running.fleet.instances[_name(engine)]

    async def ask(self, body: object = None, path: str = COMPLETIONS) -> Reply:
        """One request on a connection of its own, answered to its end."""
        asked = {"model": "m", "prompt": "hello"} if body is None else body
        return reply(await exchange(self.port, post(asked, path)))

    async def healthy(self) -> bool:
        request = b"GET /health HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
        return reply(await exchange(self.port, request)).status == 200


@contextlib.asynccontextmanager
async def started(
    engines: Sequence[FakeEngine],
    *,
    thresholds: Thresholds = QUIET,
    limits: ClientLimits | None = None,
    places: int = 256,
    scheduling: str = "adaptive",
) -> AsyncGenerator[Started, None]:
    upstreams = tuple(UpstreamSpec(_name(one), one.url, limit=places) for one in engines)
    spec = GatewaySpec(
        port=0,
        limits=limits or ClientLimits(),
        thresholds=thresholds,
        fleet=FleetSpec(upstreams, policy="round_robin", scheduling=scheduling),
    )
    collecting = gc.get_threshold()
    running = Running(spec)
    task = asyncio.ensure_future(running.serve())
    try:
        await until(lambda: task.done() or _serves(running, len(engines)))
        if task.done():
            task.result()
        yield Started(running, int(running.sockets[0].getsockname()[1]))
    finally:
        running.stop()
        await asyncio.wait_for(task, ALIVE_S)
        gc.set_threshold(*collecting)
        gc.unfreeze()


@contextlib.asynccontextmanager
async def engines(count: int, *modes: str) -> AsyncGenerator[list[FakeEngine], None]:
    """The last mode given is that of all further engines."""
    chosen = [*modes, *[modes[-1] if modes else "ok"] * count][:count]
    found = [await FakeEngine(mode=mode).start() for mode in chosen]
    try:
        yield found
    finally:
        for one in found:
            await one.stop()


async def until(holds: Callable[[], bool]) -> None:
    """Looks again and again: a gateway and an engine have no event for what tests want to see."""

    async def look() -> None:
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(_TURN_S)

    await asyncio.wait_for(look(), ALIVE_S)


def post(
    body: object, path: str = COMPLETIONS, *, close: bool = True, fields: Sequence[str] = ()
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: gateway", "content-type: application/json", *fields]
    lines += [f"content-length: {len(data)}", *(["connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode() + data


async def exchange(port: int, data: bytes) -> bytes:
    """All that comes back until the gateway closes; a reset ends it too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(reader.read(1 << 16), ALIVE_S):
                got += piece
    finally:
        await closed(writer)
    return got


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def reply(raw: bytes) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    payload = unchunked(body) if fields.get("transfer-encoding") == "chunked" else body
    return Reply(int(first.split(" ")[1]), fields, payload, raw)


def unchunked(data: bytes) -> bytes:
    """The payload, as far as it came."""
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        found += data[:length]
        data = data[length + 2 :]
    return found


def _name(engine: FakeEngine) -> str:
    return f"e{engine.port}"


def _serves(running: Running, count: int) -> bool:
    ready = sum(len(group.serving) for group in running.fleet.groups.values())
    return bool(running.sockets) and ready == count
