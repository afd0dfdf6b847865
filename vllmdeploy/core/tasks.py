"""Tasks that end together: what `asyncio.TaskGroup` promises, for Python 3.10."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class TaskGroup:
    """Leaves when every task has ended; the first that fails cancels the others and is raised.

    Where the standard group would raise several errors at once, this raises the first: one cause
    is what a caller can act on.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._first_error: BaseException | None = None
        self._owner: asyncio.Task[Any] | None = None
        self._waiting = False
        self._ending = False
        self._owner_cancelled = False

    def create_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if self._ending:
            # Begun by a task that is itself being cancelled; nobody would cancel this one.
            task.cancel()
        return task

    async def __aenter__(self) -> TaskGroup:
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._cancel_all()
        cancelled_outside = await self._all_ended()
        self._take_back_cancel()
        failure = self._first_error
        if failure is not None and (error is None or isinstance(error, asyncio.CancelledError)):
            raise failure
        if cancelled_outside is not None and error is None:
            raise cancelled_outside

    def _take_back_cancel(self) -> None:
        """From 3.11 on a task counts its cancellations; an outer timeout relies on the count."""
        # Python 3.10 counts no cancellations, unless a loop brings tasks of its own that do.
        uncancel: Callable[[], object] | None = getattr(self._owner, "uncancel", None)
        if self._owner_cancelled and uncancel is not None:
            uncancel()

    async def _all_ended(self) -> asyncio.CancelledError | None:
        cancelled: asyncio.CancelledError | None = None
        self._waiting = True
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                cancelled = error
                self._cancel_all()
        return cancelled

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or self._first_error is not None:
            return
        self._first_error = error
        self._cancel_all()
        # The body may be waiting for something that will now never come.
        if not self._waiting and self._owner is not None:
            self._owner.cancel()
            self._owner_cancelled = True

    def _cancel_all(self) -> None:
        self._ending = True
        for task in self._tasks:
            task.cancel()
