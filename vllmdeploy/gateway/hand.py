"""One worker as its parent has it: a process, a channel to it, and what it last said."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import vllmdeploy
from vllmdeploy.gateway.channel import Channel
from vllmdeploy.gateway.journal import warn
from vllmdeploy.gateway.keys import Usage
from vllmdeploy.gateway.report import Report
from vllmdeploy.gateway.spec import FleetSpec

_ANSWERS_WITHIN_S = 60.0
# The folder, or the zip, that this very package came from; never the current folder.
_ROOT = str(Path(vllmdeploy.__file__).parent.parent)
_PROGRAM = (
    f"import sys; sys.path[0] = {_ROOT!r}; "
    "from vllmdeploy.gateway.__main__ import main; sys.exit(main())"
)


@dataclass(frozen=True, slots=True)
class Orders:
    """`parent` is the path of its socket. `wait`: for instances that serve, before it listens."""

    fleet: FleetSpec
    parent: str
    wait: bool


@dataclass(frozen=True, slots=True)
class News:
    """What the others have let in under each key."""

    used: dict[str, Usage]


class Hand:
    def __init__(self, number: int, listeners: Sequence[socket.socket]) -> None:
        self.number = number
        self.report = Report()
        self._listeners = listeners
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._one_at_a_time = asyncio.Lock()

    async def begin(self, arguments: Sequence[str], orders: Orders) -> bool:
        """Once it is about to listen; False where it has ended instead."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            listeners = [one.fileno() for one in self._listeners]
            place = f"{theirs.fileno()}:{','.join(map(str, listeners))}"
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _PROGRAM, *arguments, "--worker", place),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *listeners),
            )
        self._channel = await Channel.over(ours)
        return await self.ask(orders)

    async def ask(self, message: Orders | News) -> bool:
        """Takes its report for an answer; False where it has ended."""
        async with self._one_at_a_time:
            channel = self._channel
            if channel is None:
                return False
            await channel.say(message)
            try:
                answer = await asyncio.wait_for(channel.hear(Report), _ANSWERS_WITHIN_S)
            except asyncio.TimeoutError:
                warn("a worker does not answer any more, and is ended", worker=self.number)
                self._signal(kill=True)
                answer = None
            if answer is None:
                channel.close()
                self._channel = None
                return False
            self.report = answer
            return True

    async def ended(self) -> int:
        if self._process is None:
            raise RuntimeError("a worker that was never begun cannot end")
        return await self._process.wait()

    async def end(self, limit_s: float) -> None:
        """Lets it end its requests, and cuts them after that time."""
        if self._process is None:
            return
        self._signal(kill=False)
        try:
            await asyncio.wait_for(self._process.wait(), limit_s)
        except asyncio.TimeoutError:
            self._signal(kill=True)
            await self._process.wait()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _signal(self, *, kill: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None and self._process.returncode is None:
                if kill:
                    self._process.kill()
                else:
                    self._process.terminate()
