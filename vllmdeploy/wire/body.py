"""Bodies of HTTP/1.1 messages: those without a length taken out of their chunks, all of them
gathered whole."""

from __future__ import annotations

import io
import re
from typing import Protocol

from vllmdeploy.wire.chunks import END, LINE_OF
from vllmdeploy.wire.faults import Malformed
from vllmdeploy.wire.head import CHUNKED, UNTIL_CLOSE

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")
_LINE_MAX = 256
_TRAILERS_MAX = 8192
_JOINED_MAX = 512 * 1024
_SIZE, _DATA, _DATA_END, _TRAILERS = range(4)


class Decoder(Protocol):
    """`decode` takes bytes off the wire and returns payload; `rest` is what follows the end."""

    done: bool
    rest: bytes

    def decode(self, data: bytes) -> bytes: ...


class UntilClose:
    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def decode(self, data: bytes) -> bytes:
        return data


class Chunked:
    __slots__ = ("_held", "_left", "_state", "_trailers", "done", "rest")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._held: bytes = b""
        self._trailers = 0
        self.done = False
        self.rest = b""

    def decode(self, data: bytes) -> bytes:
        if self._state == _SIZE and not self._held:
            line = LINE_OF.get(len(data))
            if line is not None:
                begin = len(line)
                if data[:begin] == line and data[-2:] == END:
                    return data[begin:-2]
        return self._by_parts(data)

    def _by_parts(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
            self._held = b""
        payload: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _DATA_END
                continue
            after = self._line(data, at)
            if after == at:
                self._held = data[at:]
                break
            at = after
        if self.done:
            self.rest = data[at:]
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def _line(self, data: bytes, at: int) -> int:
        """Reads one line of framing and returns where it ends, or `at` while it is not whole."""
        if self._state == _SIZE:
            return self._size_line(data, at)
        if self._state == _DATA_END:
            if data.startswith(b"\r\n", at):
                self._state = _SIZE
                return at + 2
            if data[at:] == b"\r":
                return at
            raise Malformed("a chunk is longer than its size")
        return self._trailer_line(data, at)

    def _size_line(self, data: bytes, at: int) -> int:
        match = _SIZE_LINE.match(data, at, at + _LINE_MAX)
        if match is None:
            if len(data) - at >= _LINE_MAX or b"\n" in data[at:]:
                raise Malformed("a chunk's size is not a hexadecimal number")
            return at
        self._left = int(match[1], 16)
        self._state = _DATA if self._left else _TRAILERS
        return match.end()

    def _trailer_line(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        match = _TRAILER.match(data, at)
        end = match.end() if match else len(data)
        if self._trailers + end - at > _TRAILERS_MAX:
            raise Malformed("the trailer is too long", 431)
        if match is None:
            if b"\n" in data[at:]:
                raise Malformed("a trailer field is not NAME: VALUE")
            return at
        self._trailers += end - at
        return end


class Gathered:
    """A body that is put together as it comes: joined in one go at its end, one of 20 MB would
    keep everybody waiting. `size` stays what it was when the body was taken."""

    __slots__ = ("_expected", "_file", "_parts", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._file: io.BytesIO | None = None
        self._expected = 0
        self.size = 0

    def expect(self, length: int) -> None:
        """So long will it be; less than 0 where nobody knows."""
        self._expected = max(0, length)

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._file is not None:
            self._file.write(piece)
            return
        self._parts.append(piece)
        if self.size > _JOINED_MAX:
            # Room for all of it, of which the system gives what is written to: growing would copy
            # megabytes, again and again. Nobody else holds these bytes, so the file writes to them
            # and not to a copy.
            self._file = io.BytesIO(bytes(self._expected))
            self._file.write(b"".join(self._parts))
            self._parts = []

    def take(self) -> bytes:
        """Copies no long body: what is asked for whole is the memory that was written to."""
        if self._file is not None:
            whole, self._file = self._file.getvalue(), None
            return whole
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forget(self) -> None:
        self._parts = []
        self._file = None
        self.size = self._expected = 0


def decoder(length: int) -> Decoder:
    """For a length that is not known; one that is known is counted by the reader itself."""
    if length == CHUNKED:
        return Chunked()
    if length == UNTIL_CLOSE:
        return UntilClose()
    raise ValueError(f"{length} bytes need no decoder")
