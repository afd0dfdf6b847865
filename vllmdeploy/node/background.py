"""Tasks that nobody awaits one by one: the first that fails ends the warden, none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def guard(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` to its end, or raise what a background task failed with."""
        main = asyncio.get_running_loop().create_task(work)
        await asyncio.wait((main, self._failed), return_when=asyncio.FIRST_COMPLETED)
        tasks = (main, *self._tasks)
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._failed.done():
            await self._failed
        self._failed.cancel()
        await main

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)
