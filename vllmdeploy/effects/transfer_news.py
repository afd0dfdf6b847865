"""What runs beside a distribution, and the one thread in which its outcomes are told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

Told = Callable[[], None]


@dataclass(frozen=True, slots=True)
class News:
    """Work runs in threads; what came of it is said where all is decided, so nothing is locked."""

    _waiting: queue.SimpleQueue[Told] = field(default_factory=queue.SimpleQueue[Told])

    def beside(self, name: str, work: Callable[[], Told]) -> None:
        """`work` runs beside; what it returns is done by `heed`, and a bug in it comes up there."""

        def run() -> None:
            try:
                told = work()
            except BaseException as bug:
                told = partial(_raise, bug)
            self.tell(told)

        threading.Thread(target=run, daemon=True, name=f"sync {name}").start()

    def tell(self, told: Told) -> None:
        self._waiting.put(told)

    def heed(self, limit_s: float) -> None:
        """Everything that was told, after the first or after so long."""
        try:
            self._waiting.get(timeout=limit_s)()
            while True:
                self._waiting.get_nowait()()
        except queue.Empty:
            pass


def _raise(bug: BaseException) -> None:
    raise bug
