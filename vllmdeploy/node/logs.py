"""One capped, rotated log per child, and its echo to the warden's own output."""

from __future__ import annotations

import os
import re
import select
from collections import deque
from pathlib import Path

LINE_LIMIT = 16_384
_PIPE_BUF = 4096  # up to here a write to a pipe that polls as writable cannot block
_TAIL_BYTES = 1_000_000
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


class RotatedLog:
    """Appends lines; never raises: a full disk must not end what is being supervised."""

    def __init__(self, path: Path, *, size_limit: int, files: int) -> None:
        self._path = path
        self._size_limit = size_limit
        self._files = files
        self._fd = -1
        self._size = 0
        self.problem = ""

    def write(self, line: str) -> None:
        data = line.encode("utf-8", "replace") + b"\n"
        try:
            if self._fd < 0:
                self._open()
            elif self._size + len(data) > self._size_limit:
                self.close()
                self._rotate()
                self._open()
            self._size += os.write(self._fd, data)
            self.problem = ""
        except OSError as error:
            self.problem = f"log {self._path}: {error.strerror or error}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = rotated(self._path, number - 1)
            if older.exists():
                older.replace(rotated(self._path, number))
        if self._files == 1:
            self._path.unlink(missing_ok=True)


def rotated(path: Path, number: int) -> Path:
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


class Echo:
    """Lines to a file descriptor, dropped rather than waited for when its reader is stuck."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.dropped = 0

    def write(self, name: str, line: str) -> None:
        data = f"[{name}] {line}\n".encode("utf-8", "replace")
        for start in range(0, len(data), _PIPE_BUF):
            if not self._writable():
                self.dropped += 1
                return
            try:
                os.write(self._fd, data[start : start + _PIPE_BUF])
            except OSError:  # a closed terminal; the log file has the line
                self.dropped += 1
                return

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return any(events & select.POLLOUT for _, events in poll.poll(0))


class Lines:
    """Bytes in, whole lines out; a line without end is cut at the limit."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE_LIMIT:
            whole.append(self._rest[:LINE_LIMIT])
            self._rest = self._rest[LINE_LIMIT:]
        return [part for line in whole for part in _parts(line)]

    def rest(self) -> list[str]:
        left, self._rest = self._rest, b""
        return _parts(left) if left else []


def _parts(line: bytes) -> list[str]:
    # A progress bar rewrites its line with carriage returns: only its last state is worth keeping.
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    text = _COLOUR.sub(b"", shown).decode("utf-8", "replace")
    return [text[start : start + LINE_LIMIT] for start in range(0, len(text), LINE_LIMIT)] or [""]


def tail(path: Path, count: int) -> list[str]:
    """The last lines, reaching back into rotated files."""
    lines: deque[str] = deque(maxlen=count)
    number, older = 0, rotated(path, 0)
    while len(lines) < count and older.is_file():
        with older.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            found = file.read().decode("utf-8", "replace").splitlines()
        missing = count - len(lines)
        lines.extendleft(reversed(found[-missing:]))
        number += 1
        older = rotated(path, number)
    return list(lines)
