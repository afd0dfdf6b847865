"""The one seam to the world: something that runs a command on a host."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable
from typing import Protocol

from vllmdeploy.core.command import Command, Result

OnLine = Callable[[str], None]
Take = Callable[[bytes], None]
# More input for a command: None where there is none yet, nothing at the end.
Feed = Callable[[], bytes | None]


class Inbox:
    """Input that comes now and then, from any thread: a `Feed` that can be waited for."""

    def __init__(self) -> None:
        self._waiting: collections.deque[bytes] = collections.deque()
        self._seen, self._written = os.pipe()
        os.set_blocking(self._seen, False)
        os.set_blocking(self._written, False)

    def put(self, data: bytes) -> None:
        """Nothing at all is the end."""
        self._waiting.append(data)
        # A full pipe wakes whoever waits as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._written, b"x")

    def fileno(self) -> int:
        return self._seen

    def __call__(self) -> bytes | None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._seen, 4096)
        return self._waiting.popleft() if self._waiting else None

    def __del__(self) -> None:
        os.close(self._seen)
        os.close(self._written)


class Shell(Protocol):
    """One host. `run` never raises for a non-zero status; it raises HostError when there is no
    conversation. Output is decoded as UTF-8 with replacement. The time limit is the command's."""

    @property
    def host(self) -> str: ...

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result: ...

    def close(self) -> None: ...


class Streaming(Protocol):
    """A shell whose commands also take and give bytes of any length, which are never kept."""

    @property
    def host(self) -> str: ...

    def stream(
        self, command: Command, *, take: Take | None = None, feed: Feed | None = None
    ) -> Result: ...
