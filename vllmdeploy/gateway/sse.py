"""Server-sent events: cut out of pieces, and watched for an end that is no end."""

from __future__ import annotations

from collections.abc import Iterator

from vllmdeploy.gateway.refusal import error_body

DONE = b"data: [DONE]"
_TAIL = 64
_GAP = b"\n\n"
_LF = ord("\n")
# One whole event that begins so, as nearly all do, is none of the errors below. It is whole if its
# first line feed is the last byte but one.
_USUAL = b'data: {"id"'
_BEGUN = len(_USUAL)
# At the beginning of a line, which no text inside JSON can fake: its line feeds are escaped.
_ERRORS = (b'\ndata: {"error"', b'\ndata: {"object":"error"', b"\nevent: error")


class Watch:
    """Looks at each piece as it passes; knows whether the stream ended as it should."""

    __slots__ = ("_between", "_tail", "events", "failed")

    def __init__(self) -> None:
        self._tail = _GAP
        self._between = True
        self.failed = False
        self.events = 0

    def see(self, piece: bytes) -> None:
        if self._between and piece[:_BEGUN] == _USUAL and piece.find(_LF) == len(piece) - 2:
            self.events += 1
            return
        # Pieces are what the network made of the events: several in one, one in several.
        self.events += piece.count(b"data:")
        seen = self._tail + piece
        self.failed = self.failed or any(mark in seen for mark in _ERRORS)
        self._tail = seen[-_TAIL:]
        self._between = seen.endswith(_GAP) and not self.done

    @property
    def done(self) -> bool:
        return DONE in self._tail

    def error_event(self, message: str) -> bytes:
        """Ends an unfinished event first, so that this one is read as its own."""
        gap = b"" if self._tail.endswith((_GAP, b"\r\n\r\n")) else _GAP
        return gap + b"data: " + error_body(502, message, "stream_broken") + b"\n\n"


class Events:
    """Cuts the `data` of each event out of pieces of a stream."""

    __slots__ = ("_held", "_limit")

    def __init__(self, limit: int = 1 << 20) -> None:
        self._held = b""
        self._limit = limit

    def feed(self, piece: bytes) -> Iterator[bytes]:
        *lines, self._held = (self._held + piece).split(b"\n")
        if len(self._held) > self._limit:
            raise ValueError(f"an event is longer than {self._limit} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
