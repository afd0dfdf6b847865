"""How fast the gateway acts: on an engine that fails, and on a client that leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import ClassVar

import gateway_peers as peers
import gateway_streams as streams
from gateway_peers import KEY, Peer
from gateway_upstream import Fake

_POLL_S = 0.01
_GIVEN_UP_S = 60.0
_ASKING = 4
# What befalls an engine, by which signal, and after how long at the most nobody is sent there.
FAULTS = {
    "crash": (signal.SIGKILL, 0.1, "killed"),
    "blackhole": (signal.SIGSTOP, 6.0, "stopped: it takes connections and says nothing"),
    "hung": (signal.SIGUSR1, 35.0, "hung, its /health still 200"),
}
_REQUEST = streams.post(b'{"model":"fake","prompt":"x","max_tokens":1}', KEY, "/v1/completions")


class Left(Fake):
    """An engine in our own loop, which writes down when the connections of its streams end."""

    ended: ClassVar[list[float]] = []
    streams = False

    def _answer(self, head: bytes, body: bytes) -> None:
        self.streams = b'"chunks"' in body
        super()._answer(head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.streams:
            self.ended.append(monotonic())


async def orphans(folder: Path, count: int, *, at_once: int = 50) -> list[float]:
    """Seconds from each client's leaving to the end of its engine's connection."""
    server = await asyncio.get_running_loop().create_server(Left, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    request = streams.stream_request(chunks=100_000, every_ms=20, key=KEY)
    late: list[float] = []
    starting = peers.ours([f"http://127.0.0.1:{port}"], folder)
    own = await asyncio.to_thread(starting.__enter__)
    try:
        while len(late) < count:
            opened = await streams.open_streams(own.url, request, at_once)
            Left.ended.clear()
            left_at = monotonic()
            for one in opened:
                one.leave()
            late += [at - left_at for at in await _ends(at_once)]
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)
        server.close()
    return late


async def _ends(count: int) -> Sequence[float]:
    until = monotonic() + _GIVEN_UP_S
    while len(Left.ended) < count:
        if monotonic() > until:
            raise SystemExit(f"of {count} connections to engines {len(Left.ended)} ended")
        await asyncio.sleep(_POLL_S / 10)
    return Left.ended


def until_unused(folder: Path, fault: str) -> float:
    """Seconds, under load, from the fault to when no request is sent there any more."""
    number = FAULTS[fault][0]
    with (
        peers.fake_processes(4) as engines,
        peers.ours(list(engines), folder) as own,
        subprocess.Popen(_wrk(own, folder), stdout=subprocess.DEVNULL) as load,
    ):
        try:
            victim = next(iter(engines)).removeprefix("http://")
            _until(own, victim, ready=True)
            sleep(1)
            os.kill(next(iter(engines.values())).pid, number)
            began = monotonic()
            _until(own, victim, ready=False)
            return monotonic() - began
        finally:
            load.terminate()


def _wrk(own: Peer, folder: Path) -> Sequence[str]:
    """Its requests that hang at the victim are sent elsewhere once it is found out."""
    script = folder / "faults.lua"
    lines = _REQUEST.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    named = "".join(
        f'wrk.headers["{name}"] = "{fields[name]}"\n' for name in ("content-type", "authorization")
    )
    body = lines[-1].replace('"', '\\"')
    script.write_text(
        f'wrk.method = "POST"\nwrk.path = "/v1/completions"\nwrk.body = "{body}"\n{named}'
    )
    seconds = str(int(_GIVEN_UP_S) + 30)
    return ("wrk", "-t1", f"-c{_ASKING}", f"-d{seconds}s", "-s", str(script), own.url)


def _until(own: Peer, victim: str, *, ready: bool) -> None:
    wanted = f'vllmdeploy_gateway_instance_ready{{instance="{victim}"}} {int(ready)}'
    until = monotonic() + _GIVEN_UP_S
    while wanted not in peers.page(own.port, "/metrics"):
        if monotonic() > until:
            raise SystemExit(f"{victim} did not come to be ready={ready}")
        sleep(_POLL_S)
