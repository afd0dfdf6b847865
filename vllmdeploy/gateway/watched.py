"""Files that may change while we run, replaced by rename: the last good text stays in force."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from vllmdeploy.errors import SettingsError, VllmdeployError
from vllmdeploy.gateway.journal import say, warn

_LOOK_EVERY_S = 0.25


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error


class Watched:
    """`take` gets each new text and raises if it is no good."""

    def __init__(self, path: str, take: Callable[[str, str], Awaitable[None]]) -> None:
        self.path = path
        self._take = take
        self._seen = _stamp(path)

    async def start(self) -> None:
        """The first text must be good: there is nothing to keep instead."""
        self._seen = _stamp(self.path)
        await self._take(read_text(self.path), self.path)

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            await self._take(read_text(self.path), self.path)
        except VllmdeployError as error:
            warn("file not taken over, the last good one stays", path=self.path, why=str(error))
        else:
            say("file taken over", path=self.path)


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
