"""What a gateway and its workers say to each other, over a pair of sockets that only they have."""

from __future__ import annotations

import asyncio
import pickle
import socket
from typing import TypeVar

T = TypeVar("T")
_SIZE_BYTES = 4


class Channel:
    """Values of one and the same program, on one machine, within one user's processes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def say(self, value: object) -> None:
        """One that has ended hears nothing, and says so by its silence."""
        data = pickle.dumps(value)
        try:
            self._writer.write(len(data).to_bytes(_SIZE_BYTES, "big") + data)
            await self._writer.drain()
        except ConnectionError:
            self.close()

    async def hear(self, kind: type[T]) -> T | None:
        """None: the other side has ended."""
        try:
            size = int.from_bytes(await self._reader.readexactly(_SIZE_BYTES), "big")
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        value: object = pickle.loads(data)  # noqa: S301 - nobody else holds an end of these sockets
        if not isinstance(value, kind):
            raise TypeError(f"{type(value).__name__} where {kind.__name__} was expected")
        return value

    def close(self) -> None:
        self._writer.close()
