"""What a command says: a bounded copy is kept, every line is passed on as it comes."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable

from vllmdeploy.effects.shell import OnLine

KEPT_BYTES = 8 * 1024 * 1024

# Longer than this without a line end is passed on in pieces, so that memory stays bounded.
_LONGEST_LINE = 64 * 1024
_TAIL_SLACK = 1024 * 1024


class Lines:
    """Bytes in, whole lines out; a carriage return ends a line too, as progress bars use it."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder("utf-8")("replace"), translate=True
        )
        self._unfinished = ""

    def feed(self, data: bytes, *, final: bool = False) -> None:
        text = self._unfinished + self._decoder.decode(data, final=final)
        *whole, self._unfinished = text.split("\n")
        for line in whole:
            self._on_line(line)
        if self._unfinished and (final or len(self._unfinished) > _LONGEST_LINE):
            self._on_line(self._unfinished)
            self._unfinished = ""


class Passed:
    """An output stream that is handed on byte for byte, and not kept."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def feed(self, data: bytes) -> None:
        if data:
            self._take(data)

    def close(self) -> str:
        return ""


class Stream:
    """One output stream. Past `keep` bytes the middle is left out, and the text says so."""

    def __init__(self, on_line: OnLine | None, *, keep: int = KEPT_BYTES) -> None:
        self._lines = Lines(on_line) if on_line is not None else None
        self._half = keep // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def feed(self, data: bytes) -> None:
        if self._lines is not None:
            self._lines.feed(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > self._half + _TAIL_SLACK:
            self._trim()

    def close(self) -> str:
        """The kept text; the last line is passed on even without a line end."""
        if self._lines is not None:
            self._lines.feed(b"", final=True)
        self._trim()
        if self._left_out:
            self._head += b"\n[... %d bytes left out ...]\n" % self._left_out
        return (self._head + self._tail).decode("utf-8", "replace")

    def _trim(self) -> None:
        excess = len(self._tail) - self._half
        if excess > 0:
            del self._tail[:excess]
            self._left_out += excess
