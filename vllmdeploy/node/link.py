"""Wardens of one engine's ranks talk: the first listens, the others tell and are told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from vllmdeploy.node.background import Background
from vllmdeploy.node.ranks import (
    SILENT_S,
    Heard,
    Rank,
    Ranks,
    Run,
    first_lacks,
    joined,
    other_lacks,
    others_failed,
    read_rank,
)

T = TypeVar("T")

_EVERY_S = 0.5
_EXCHANGE_S = 3.0
_SILENT_CALLER_S = 30.0
_RETURN_S = 3.0  # for one whose connection broke; a host that died breaks none
_LONGEST = 65536
_LINES = 8


class Link:
    """One rank's side of it. `rank` is asked for this side's state, the run left open."""

    def __init__(self, service: str, ranks: Ranks, background: Background) -> None:
        self._service = service
        self._ranks = ranks
        self._boot = f"{time.time_ns():x}"
        self._own: Callable[[], tuple[Rank, int]] = _nothing
        self._heard: dict[int, Heard] = {}
        self._run = Run()
        self._joins = ""
        self._problem = ""
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()
        self._work = background.start(self._listen() if ranks.leads else self._tell())

    def speaks_for(self, own: Callable[[], tuple[Rank, int]]) -> None:
        """`own`: this rank's state and how many times it was started."""
        self._own = own

    def lacking(self, up: bool) -> str:
        now = asyncio.get_running_loop().time()
        if self._ranks.leads:
            if self._problem:
                return self._problem
            own, _ = self._own()
            if own.failed and own.state == "clearing":
                return others_failed(self._ranks, self._heard, now)
            return first_lacks(self._ranks, self._now_in(now), self._heard, now)
        first = self._heard.get(0)
        lacks = other_lacks(self._ranks, first, self._joins if up else "", now)
        if first and not lacks and not up:
            self._joins = first.rank.run
        return f"{lacks} ({self._problem})" if lacks and self._problem else lacks

    def report(self) -> list[dict[str, object]]:
        """The other ranks as the first hears them; the others report nothing."""
        if not self._ranks.leads:
            return []
        return [
            {"rank": index, "host": self._ranks.hosts[index][0], **one.rank.document()}
            for index, one in sorted(self._heard.items())
        ]

    def close(self) -> None:
        self._work.cancel()
        if self._server is not None:
            self._server.close()
        for talk in self._talks:
            talk.cancel()

    def _now_in(self, now: float) -> Run:
        own, spawned = self._own()
        name = f"{self._boot}-{spawned}" if own.up else ""
        if name != self._run.name:
            self._run = Run(name=name, since=now)
        self._run = joined(self._run, self._heard)
        return self._run

    def _state(self) -> Rank:
        """This rank with the run it is up in."""
        own, _ = self._own()
        if self._ranks.leads:
            run = self._now_in(asyncio.get_running_loop().time()).name
        else:
            run = self._joins if own.up else ""
        return Rank(
            state=own.state,
            reason=own.reason,
            run=run,
            failed=own.failed,
            failures=own.failures,
            exit_code=own.exit_code,
            lines=own.lines[-_LINES:],
        )

    async def _listen(self) -> None:
        _, ip = self._ranks.hosts[0]
        while self._server is None:
            try:
                self._server = await asyncio.start_server(
                    self._talk, ip, self._ranks.port, limit=_LONGEST
                )
                self._problem = ""
            except OSError as error:
                self._problem = f"cannot listen at {ip}:{self._ranks.port}: {error}"
                await asyncio.sleep(_EVERY_S)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._talks.add(task)
            task.add_done_callback(self._talks.discard)
        peer = str(writer.get_extra_info("peername", ("",))[0])
        index = 0
        try:
            while line := await _within(_SILENT_CALLER_S, reader.readline()):
                index = self._hear(json.loads(line), peer)
                writer.write(json.dumps(self._state().document()).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, asyncio.TimeoutError):
            return  # a caller that is gone, or is no rank of ours: its silence is noticed
        finally:
            self._lost(index)
            writer.close()

    def _lost(self, index: int) -> None:
        one = self._heard.get(index)
        if one is not None:
            lately = asyncio.get_running_loop().time() - SILENT_S + _RETURN_S
            self._heard[index] = Heard(one.rank, min(one.at, lately))

    def _hear(self, said: Any, peer: str) -> int:
        """ValueError: it does not come from a rank of this engine."""
        if not isinstance(said, dict):
            raise ValueError("not an object")
        message = cast("dict[str, Any]", said)
        who = (message.get("service"), message.get("generation"))
        if who != (self._service, self._ranks.generation):
            raise ValueError(f"a rank of {who}")
        index = message.get("index")
        hosts = self._ranks.hosts
        if not isinstance(index, int) or not 0 < index < len(hosts) or hosts[index][1] != peer:
            raise ValueError(f"{peer} is not rank {index}")
        now = asyncio.get_running_loop().time()
        self._heard[index] = Heard(read_rank(message), now)
        self._run = joined(self._run, self._heard)
        return index

    async def _tell(self) -> None:
        while True:
            try:
                await self._converse()
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                self._problem = str(error) or "it does not answer in time"
            await asyncio.sleep(_EVERY_S)

    async def _converse(self) -> None:
        _, first = self._ranks.hosts[0]
        _, own = self._ranks.hosts[self._ranks.index]
        calling = asyncio.open_connection(
            first, self._ranks.port, local_addr=(own, 0), limit=_LONGEST
        )
        reader, writer = await _within(_EXCHANGE_S, calling)
        try:
            while True:
                await self._exchange(reader, writer)
                await asyncio.sleep(_EVERY_S)
        finally:
            self._lost(0)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = {
            "service": self._service,
            "generation": self._ranks.generation,
            "index": self._ranks.index,
            **self._state().document(),
        }
        writer.write(json.dumps(message).encode() + b"\n")
        await writer.drain()
        line = await _within(_EXCHANGE_S, reader.readline())
        if not line:
            raise ConnectionError("it closed the connection: it runs another generation")
        self._heard[0] = Heard(read_rank(json.loads(line)), asyncio.get_running_loop().time())
        self._problem = ""


async def _within(limit_s: float, work: Coroutine[Any, Any, T]) -> T:
    """As `wait_for`, which before Python 3.12 can lose that it was cancelled meanwhile."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait((task,), timeout=limit_s)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


def _nothing() -> tuple[Rank, int]:
    return Rank(), 0
