"""Server-sent events out of a stream of bytes, cut anywhere."""

from __future__ import annotations

_EVENT_MAX = 16 << 20


class Events:
    """Only the data of events: OpenAI's streams use nothing else."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises ValueError for an event that does not end."""
        self._rest += piece
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        if len(rest) + self._size > _EVENT_MAX:
            raise ValueError(f"an event is longer than {_EVENT_MAX} bytes")
        whole: list[bytes] = []
        for line in lines:
            text = bytes(line.removesuffix(b"\r"))
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
                self._size += len(text)
            elif not text and self._data:
                whole.append(b"\n".join(self._data))
                self._data = []
                self._size = 0
        return whole
