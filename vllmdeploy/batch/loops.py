"""An event loop for one run: uvloop where it is there, in a thread where a loop runs already."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(main: Callable[[], Coroutine[object, object, Result]]) -> Result:
    """Ends with KeyboardInterrupt on SIGINT and SIGTERM, after `main` has tidied up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(main)
    # A notebook, for one: its loop is busy with the cell that called us.
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(_run, main).result()


def _run(main: Callable[[], Coroutine[object, object, Result]]) -> Result:
    loop = _new_loop()
    try:
        task = loop.create_task(main())
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                loop.add_signal_handler(number, task.cancel)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
