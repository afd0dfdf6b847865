"""A coroutine that runs without a task for as long as it waits for nothing but wires.

A task costs two turns of the event loop and a future for each wait, which is more than all the
rest of passing on a short answer. `Work` begins at once, in the turn that brought the request, and
goes on in the turn that brought the answer. Where it waits for anything else than a `Signal`, it
goes on as a task, in which everything of asyncio is at hand.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Signal:
    """Given once, awaited by one `Work`."""

    __slots__ = ("_given", "_resume")

    def __init__(self) -> None:
        self._given = False
        self._resume: Callable[[], None] | None = None

    def done(self) -> bool:
        return self._given

    def set_result(self, _: None) -> None:
        """Whoever waits goes on before this returns."""
        self._given = True
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def then(self, resume: Callable[[], None] | None) -> None:
        self._resume = resume

    def __await__(self) -> Generator[Signal, None, None]:
        if not self._given:
            yield self


Waiter = Signal | asyncio.Future[None]


def waiter(loop: asyncio.AbstractEventLoop) -> Waiter:
    """What to wait for here: a task understands futures only."""
    return Signal() if asyncio.current_task(loop) is None else loop.create_future()


async def in_a_task() -> None:
    """From here on a task runs this: timeouts of asyncio need one since Python 3.12."""
    if asyncio.current_task() is None:
        await asyncio.sleep(0)


class Work:
    """`broken` is told of an error that the coroutine did not handle itself.

    Begun, and gone on with, by callbacks of the event loop only, never from within a task: asyncio
    would take what the coroutine does for that task's doing.
    """

    __slots__ = ("_broken", "_coroutine", "_loop", "_signal", "_task")

    def __init__(
        self,
        coroutine: Coroutine[Any, None, None],
        loop: asyncio.AbstractEventLoop,
        broken: Callable[[Exception], None],
    ) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._broken = broken
        self._signal: Signal | None = None
        self._task: asyncio.Task[None] | None = None

    def go_on(self) -> None:
        self._signal = None
        try:
            waits_for = self._coroutine.send(None)
        except (StopIteration, asyncio.CancelledError):
            return  # cancelled: before, and had something left to wait for
        except Exception as error:
            self._broken(error)
            return
        self._wait(waits_for)

    def cancel(self) -> None:
        """At once where it waits for a wire; as asyncio cancels where it is a task."""
        if self._task is not None:
            self._task.cancel()
            return
        if self._signal is None:
            return  # it has ended
        self._signal.then(None)
        self._signal = None
        try:
            waits_for = self._coroutine.throw(asyncio.CancelledError())
        except (StopIteration, asyncio.CancelledError):
            return
        except Exception as error:
            self._broken(error)
            return
        self._wait(waits_for)

    def _wait(self, waits_for: object) -> None:
        if isinstance(waits_for, Signal):
            self._signal = waits_for
            waits_for.then(self.go_on)
        else:
            self._task = self._loop.create_task(self._as_task(waits_for))

    async def _as_task(self, waits_for: object) -> None:
        try:
            await _rest(self._coroutine, waits_for)
        except Exception as error:
            self._broken(error)


@types.coroutine
def _rest(
    coroutine: Coroutine[Any, None, None], waits_for: object
) -> Generator[object, None, None]:
    """What is left of a coroutine that has begun and waits."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            step = _throwing(coroutine, error)
        else:
            step = coroutine.send
        try:
            waits_for = step(None)
        except StopIteration:
            return


def _throwing(
    coroutine: Coroutine[Any, None, None], error: BaseException
) -> Callable[[None], object]:
    return lambda _: coroutine.throw(error)
