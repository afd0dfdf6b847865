"""An event loop for one run: uvloop where it is there, in a thread where a loop runs already."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run was told to stop, by `Stop`; it can be resumed."""


class Stop:
    """Ends a run from another thread, whether it has begun yet or not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._end: Callable[[], object] | None = None

    @property
    def asked(self) -> bool:
        return self._asked

    def ask(self) -> None:
        with self._lock:
            self._asked = True
            if self._end is not None:
                self._end()

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Generator[None]:
        """`end` is called by `ask`, and at once where it has been called; never after this."""
        with self._lock:
            self._end = end
            if self._asked:
                end()
        try:
            yield
        finally:
            with self._lock:
                self._end = None


def run(main: Callable[[], Coroutine[object, object, Result]], stop: Stop | None = None) -> Result:
    """Ends with KeyboardInterrupt on SIGINT and SIGTERM, after `main` has tidied up."""
    stop = stop or Stop()
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(main, stop)
    # A notebook, for one: its loop is busy with the cell that called us.
    with ThreadPoolExecutor(1) as threads:
        try:
            return threads.submit(_run, main, stop).result()
        except BaseException:
            stop.ask()  # an interrupted cell, which leaves this block only when the thread ends
            raise


def _run(main: Callable[[], Coroutine[object, object, Result]], stop: Stop) -> Result:
    loop = _new_loop()
    try:
        task = loop.create_task(main())
        ending = stop.ending(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            with _signals(loop, task.cancel), ending:
                return loop.run_until_complete(task)
        except asyncio.CancelledError:
            raise (Stopped() if stop.asked else KeyboardInterrupt()) from None
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@contextmanager
def _signals(loop: asyncio.AbstractEventLoop, end: Callable[[], object]) -> Generator[None]:
    """Gives them back to whoever had them: uvloop keeps them when it is closed, and then they
    do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
