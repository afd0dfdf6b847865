"""Batches at work: each in a thread with the batch runner, resumed after any end of the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from vllmdeploy.batch.durable import OutputStopped
from vllmdeploy.batch.lock import hold
from vllmdeploy.batch.loops import Stop, Stopped
from vllmdeploy.batch.progress import Progress
from vllmdeploy.errors import Locked, VllmdeployError
from vllmdeploy.gateway.api.batches_calls import Enter
from vllmdeploy.gateway.api.batches_finish import finish
from vllmdeploy.gateway.api.batches_rows import run_rows
from vllmdeploy.gateway.api.batches_store import BatchStore, Record
from vllmdeploy.gateway.journal import bug, say, warn

_AT_ONCE = 16
_AT_ONCE_OF_ONE = 2
_AGAIN_S = 5.0
_LOCKED_S = 0.5


class Live:
    """A batch that is not finished, as this gateway sees it. Its thread alone writes its record."""

    def __init__(self, record: Record, loop: asyncio.AbstractEventLoop) -> None:
        self.record = record
        self.stop = Stop()
        self.ends_as = ""  # what it is told to end as
        self.fault = ""
        self.waiting = ""  # why it does not get on
        self.progress: Progress | None = None
        self.told = loop.create_future()
        self.expiry: asyncio.TimerHandle | None = None

    def end(self, status: str) -> None:
        """The first word counts; an empty one leaves the batch to the next gateway."""
        self.ends_as = self.ends_as or status
        self.stop.ask()
        if not self.told.done():
            self.told.set_result(None)

    def seen(self) -> Record:
        """The record with what has happened since it was written."""
        record, progress = self.record, self.progress
        if progress is not None:
            record = replace(
                record, total=progress.total, completed=progress.ok, failed=progress.failed
            )
        if self.ends_as == "cancelled" and not record.is_final:
            record = replace(record, status="cancelling")
        return record


class Batches:
    """Two batches of one key at a time, so that one key cannot keep the others waiting."""

    def __init__(self, store: BatchStore, enter: Enter) -> None:
        self.store = store
        self._enter = enter
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="batch")
        self._live: dict[str, Live] = {}
        self._waiting: list[Live] = []
        self._running: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> None:
        """Goes on with what an earlier gateway left."""
        found = await self._loop.run_in_executor(None, lambda: [*self.store.unfinished()])
        for record in found:
            say("batch resumed", batch=record.id)
            self.add(record)

    def add(self, record: Record) -> None:
        live = self._live[record.id] = Live(record, self._loop)
        left = max(0.0, record.expires_at - time.time())
        live.expiry = self._loop.call_later(left, self.tell, live, "expired")
        self._waiting.append(live)
        self._begin_more()

    def live(self, id_: str) -> Live | None:
        return self._live.get(id_)

    def unfinished(self, owner: str) -> int:
        return sum(live.record.owner == owner for live in self._live.values())

    async def close(self) -> None:
        """Leaves every batch where it is, for the next gateway to go on with."""
        self._closing = True
        self._waiting.clear()
        for live in self._live.values():
            if live.expiry is not None:
                live.expiry.cancel()
            live.end("")
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._threads.shutdown(wait=False)

    def _begin_more(self) -> None:
        """Called whenever one comes or ends; a batch that is told to end needs its turn too."""
        for live in tuple(self._waiting):
            owner = live.record.owner
            if len(self._tasks) >= _AT_ONCE:
                return
            if self._running.get(owner, 0) >= _AT_ONCE_OF_ONE and not live.ends_as:
                continue
            self._waiting.remove(live)
            self._running[owner] = self._running.get(owner, 0) + 1
            task = self._loop.create_task(self._run(live))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._closing:
            self._begin_more()

    def tell(self, live: Live, status: str) -> None:
        live.end(status)
        self._begin_more()

    async def _run(self, live: Live) -> None:
        try:
            while not await self._tried(live):
                pass
        finally:
            if live.expiry is not None:
                live.expiry.cancel()
            self._running[live.record.owner] -= 1
            del self._live[live.record.id]

    async def _tried(self, live: Live) -> bool:
        """True when there is nothing more to do here."""
        pause = _AGAIN_S
        try:
            await self._loop.run_in_executor(self._threads, self._work, live)
            return True
        except Locked:
            pause = _LOCKED_S  # the gateway that we replace is about to let go of it
        except OutputStopped as stopped:
            live.waiting = str(stopped)
            warn("batch waits", batch=live.record.id, why=stopped.message)
        except Exception as error:
            bug(f"a bug in batch {live.record.id}", error)
            live.fault = "the gateway has a bug; its log has the details"
            live.end("failed")
        if not self._closing:
            await asyncio.wait([live.told], timeout=pause)
            if live.told.done() and live.ends_as:
                await asyncio.sleep(_LOCKED_S)
        return self._closing

    # what runs in the batch's thread

    def _work(self, live: Live) -> None:
        store = self.store
        if store.get(live.record.owner, live.record.id) is None:
            return  # somebody has removed it
        with hold(store.folder(live.record)):
            live.record = store.get(live.record.owner, live.record.id) or live.record
            if live.record.is_final:
                return
            if store.asked_to_cancel(live.record):
                live.ends_as = live.ends_as or "cancelled"
            if live.record.status != "finalizing":
                self._rows(live)
            if live.record.ends_as:
                live.record = finish(store, live.record)
                say("batch ended", batch=live.record.id, status=live.record.status)

    def _rows(self, live: Live) -> None:
        """Afterwards the record says how it ends, or nothing where the next gateway goes on."""
        if live.record.status == "validating":
            self._save(live, live.record.at("in_progress", time.time()))
        ends_as, error = "completed", live.fault
        try:
            if live.ends_as:
                raise Stopped
            listener = self._listener(live)
            run_rows(self.store, live.record, self._enter, self._loop, live.stop, listener)
        except Stopped:
            ends_as = live.ends_as
        except (OutputStopped, Locked):
            raise
        except VllmdeployError as failure:
            ends_as, error = "failed", failure.message
        if ends_as:
            total = live.progress.total if live.progress else 0
            record = live.record.at(
                "finalizing", time.time(), ends_as=ends_as, error=error, total=total
            )
            self._save(live, record)

    def _listener(self, live: Live) -> Callable[[Progress], None]:
        """Also looks for what has come to the disk since: a full folder, a wish to cancel."""
        store = self.store

        def listen(progress: Progress) -> None:
            live.progress, live.waiting = progress, progress.waiting
            if store.asked_to_cancel(live.record):
                self._loop.call_soon_threadsafe(live.end, "cancelled")
            if store.files.full():
                raise OutputStopped(
                    "the gateway's room for files is full",
                    hint="delete some, or raise API_FILES_SIZE: the batch then goes on",
                )

        return listen

    def _save(self, live: Live, record: Record) -> None:
        self.store.save(record)
        live.record = record
