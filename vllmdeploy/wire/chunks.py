"""Chunks as nearly everyone writes them: looked up, because each event of a stream is one."""

from __future__ import annotations

_USUAL = 4096  # bytes; events of a stream are shorter
END = b"\r\n"

_LINES = [b"%x\r\n" % size for size in range(_USUAL)]
# By the length of the whole chunk. One of no bytes is the end of a body, and no chunk.
LINE_OF = {len(line) + size + len(END): line for size, line in enumerate(_LINES) if size}


def chunk(data: bytes) -> bytes:
    if len(data) < _USUAL:
        return _LINES[len(data)] + data + END
    return b"%x\r\n%b\r\n" % (len(data), data)
