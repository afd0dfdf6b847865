"""Keeps rows in flight until all are finished, in memory that does not grow with the input."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from vllmdeploy.batch import progress as progresses
from vllmdeploy.batch.entries import Entry, format_entry
from vllmdeploy.batch.instances import Instances
from vllmdeploy.batch.journal import Journal
from vllmdeploy.batch.progress import InstanceProgress, Progress, Speed
from vllmdeploy.batch.records import BadRow, Row
from vllmdeploy.batch.rowcalls import RowCalls, bad_entry
from vllmdeploy.errors import NotHealthy, UsageError

# None stands for a line that an earlier run finished.
Rows: TypeAlias = "Iterator[Row | BadRow | None]"
Listener: TypeAlias = Callable[[Progress], None]

_SYNC_ROWS = 256
_SYNC_S = 1.0
_SYNC_PAUSE_S = 0.1
_ASK_AGAIN_S = 1.0
_BYTES_IN_FLIGHT = 64 << 20
_LINES_A_TURN = 256  # without a call among them, before others get their turn


@dataclass(frozen=True, slots=True)
class Bounds:
    """Rows in flight at once, and when to stop without being finished."""

    concurrency: int = 256
    max_cost: float | None = None
    give_up_after_s: float | None = None


class Runner:
    def __init__(
        self,
        rows: Rows,
        total: int,
        journal: Journal,
        calls: RowCalls,
        instances: Instances,
        *,
        bounds: Bounds,
        listener: Listener,
    ) -> None:
        self._rows = rows
        self._total = total
        self._journal = journal
        self._calls = calls
        self._instances = instances
        self._bounds = bounds
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._speed = Speed()
        self._began = self._loop.time()
        self._bytes = 0
        self._room = asyncio.Event()
        self._unsynced = asyncio.Event()
        self._tokens = 0
        self._down_since: float | None = None
        self._spent = False
        self._syncing: asyncio.Future[None] | None = None

    async def run(self) -> None:
        self._speed.sample(self._began, len(self._journal.done), 0)
        keeper = asyncio.ensure_future(self._keep())
        try:
            workers = [self._work() for _ in range(self._bounds.concurrency)]
            await _all_or_none([*workers], keeper)
        finally:
            await _end({keeper})
            if self._syncing is not None:
                await asyncio.wait([self._syncing])  # a thread cannot be cancelled
            self._instances.close()
            self._journal.sync()
            self._report()
        if self._spent:
            raise UsageError(
                f"the cost has reached {self._calls.cost:.3g} of {self._bounds.max_cost:g}; "
                f"rows left: {self._total - len(self._journal.done)}",
                hint="run the same command with a higher --max-cost: it goes on",
            )

    async def _work(self) -> None:
        while (row := await self._next()) is not None:
            try:
                self._write(await self._calls.finish(row))
            finally:
                self._bytes -= len(row.payload)
                self._room.set()

    async def _next(self) -> Row | None:
        while self._bytes >= _BYTES_IN_FLIGHT:
            self._room.clear()
            await self._room.wait()
        for looked_at, item in enumerate(self._rows, 1):
            if isinstance(item, Row):
                if self._spent:
                    return None
                self._bytes += len(item.payload)
                return item
            if item is not None:
                self._write(bad_entry(item))
            if looked_at % _LINES_A_TURN == 0:
                await asyncio.sleep(0)
        return None

    def _write(self, entry: Entry) -> None:
        head, journal = entry.head, self._journal
        journal.append(head.line, head.kind, format_entry(entry))
        self._tokens += head.completion_tokens
        if journal.unsynced >= _SYNC_ROWS:
            self._unsynced.set()
        if self._bounds.max_cost is not None and self._calls.cost >= self._bounds.max_cost:
            self._spent = True

    async def _keep(self) -> None:
        """Syncs and reports about once a second; ends the run by raising."""
        reported = self._began
        while True:
            await self._wait_for_rows()
            if self._journal.unsynced:
                self._syncing = self._loop.run_in_executor(None, self._journal.sync)
                await asyncio.shield(self._syncing)
            now = self._loop.time()
            if now - reported >= _SYNC_S:
                reported = now
                self._report()
            self._check_outage(now)

    async def _wait_for_rows(self) -> None:
        self._unsynced.clear()
        await asyncio.sleep(_SYNC_PAUSE_S)
        alarm = self._loop.call_later(_SYNC_S - _SYNC_PAUSE_S, self._unsynced.set)
        try:
            await self._unsynced.wait()
        finally:
            alarm.cancel()

    def _check_outage(self, now: float) -> None:
        reason, limit = self._instances.outage(), self._bounds.give_up_after_s
        if not reason:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        elif limit is not None and now - self._down_since >= limit:
            raise NotHealthy(
                f"nothing answered for {limit:g} s: {reason}",
                hint="see to the instances, then run the same command: it goes on",
            )

    def _report(self) -> None:
        now, journal = self._loop.time(), self._journal
        rows_per_s, tokens_per_s = self._speed.sample(now, len(journal.done), self._tokens)
        progress = Progress(
            total=self._total,
            ok=journal.ok,
            failed=journal.failed,
            inflight=self._instances.inflight,
            rows_per_s=rows_per_s,
            tokens_per_s=tokens_per_s,
            seconds=now - self._began,
            waiting=self._instances.outage(),
            instances=tuple(
                InstanceProgress(i.name, i.load.inflight, i.places.limit, i.ok, i.failed, i.reason)
                for i in self._instances.all
            ),
        )
        progresses.save(journal.folder, progress)
        self._listener(progress)


async def _all_or_none(
    parts: list[Coroutine[object, object, None]], keeper: asyncio.Future[None]
) -> None:
    """Ends when all parts have; the first to fail, the keeper included, ends the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        waiting: set[asyncio.Future[None]] = {*tasks}
        while waiting:
            done, waiting = await asyncio.wait(
                {*waiting, keeper}, return_when=asyncio.FIRST_COMPLETED
            )
            waiting.discard(keeper)
            for task in done:
                task.result()
            if keeper in done:
                raise RuntimeError("the keeper ended before the rows")
    finally:
        await _end({*tasks})


async def _end(tasks: set[asyncio.Future[None]]) -> None:
    """Cancels until all have ended: before Python 3.12 `wait_for` can swallow a cancellation,
    and a worker that goes on would finish the whole input."""
    while tasks:
        for task in tasks:
            task.cancel()
        done, tasks = await asyncio.wait(tasks, timeout=_ASK_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # the first failure is raised already; asyncio wants this one read
