"""Bytes from a command on one host into a command on another, through this machine's memory."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

from vllmdeploy.core.command import Command, Result, check
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.shell import Streaming
from vllmdeploy.errors import VllmdeployError

_ROOM_BYTES = 4 * 1024 * 1024
_SILENT_S = 30.0


class OtherEndGone(VllmdeployError):
    """Said of the end that still works: the other one's own error is the one to show."""


class Pipe:
    """A bounded queue of bytes between two threads, with a brake."""

    def __init__(
        self, *, on_moved: Callable[[int], None], limit_bytes_s: float | None = None
    ) -> None:
        self._waiting: collections.deque[bytes] = collections.deque()
        self._held = 0
        self._moved = 0
        self._ended = self._broken = False
        self._changed = threading.Condition()
        self._on_moved = on_moved
        self._limit = limit_bytes_s
        self._began = time.monotonic()

    def put(self, data: bytes) -> None:
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._broken or self._held < _ROOM_BYTES, _SILENT_S
            )
            if self._broken or not room:
                raise OtherEndGone("the receiving end takes no more")
            self._waiting.append(data)
            self._held += len(data)

    def get(self) -> bytes | None:
        with self._changed:
            if self._broken:
                raise OtherEndGone("the sending end broke off")
            if not self._waiting:
                return b"" if self._ended else None
            if self._limit and self._moved > self._limit * (time.monotonic() - self._began):
                return None
            data = self._waiting.popleft()
            self._held -= len(data)
            self._moved += len(data)
            self._changed.notify()
        self._on_moved(self._moved)
        return data

    def end(self) -> None:
        with self._changed:
            self._ended = True

    def break_(self) -> None:
        with self._changed:
            self._broken = True
            self._changed.notify()


def through(
    source: Streaming,
    give: Command,
    target: Streaming,
    take: Command,
    *,
    on_moved: Callable[[int], None],
    limit_bytes_s: float | None = None,
) -> None:
    """Both commands succeed, or the error of the one that failed first is raised."""
    pipe = Pipe(on_moved=on_moved, limit_bytes_s=limit_bytes_s)

    def sending() -> Result:
        # An end of input that was none would look like a whole file: only success ends it.
        said = source.stream(give, take=pipe.put)
        check(source.host, give, said, doing="reading for another host")
        pipe.end()
        return said

    def taking() -> Result:
        said = target.stream(take, feed=pipe.get)
        return check(target.host, take, said, doing="writing what another host sent")

    def guarded(work: Callable[[], Result]) -> Result:
        try:
            return work()
        except BaseException:
            pipe.break_()
            raise

    answers = each((sending, taking), guarded)
    errors = [answer for answer in answers if isinstance(answer, VllmdeployError)]
    for error in sorted(errors, key=lambda one: isinstance(one, OtherEndGone)):
        raise error
