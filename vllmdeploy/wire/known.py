"""The last head read on a connection, from which the next mostly differs in its length alone."""

from __future__ import annotations

import re
from typing import Generic, TypeVar

from vllmdeploy.wire.head import LENGTH_DIGITS, AnswerHead, RequestHead

Head = TypeVar("Head", RequestHead, AnswerHead)

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,%d})\r\n" % LENGTH_DIGITS, re.IGNORECASE)
_LONGEST = 8192  # with any length in it, far from the limit of a head


class Known(Generic[Head]):
    """Finds the same head again, whatever digits its length has.

    That is no second parser: all other bytes must be those that the parser has read, and digits in
    their place it would read as just another length. So what comes is read as the parser reads it,
    or not found. `head` is the one found last.
    """

    __slots__ = ("_after", "_before", "_digits", "head")

    def __init__(self, raw: bytes, head: Head) -> None:
        match = _LENGTH.search(raw)
        start, end = match.span(1) if match else (len(raw), len(raw))
        self._before, self._digits, self._after = raw[:start], raw[start:end], raw[end:]
        self.head: Head = head

    def end_in(self, data: bytes) -> int:
        """Where the head ends with which `data` begins, or -1 where it is not this one."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return -1
        start = len(before)
        if not after:
            return start
        stop = data.find(b"\r", start, start + LENGTH_DIGITS + 1)
        if stop < 0 or not data.startswith(after, stop):
            return -1
        digits = data[start:stop]
        if digits != self._digits:
            if not digits.isdigit():
                return -1
            self._digits = digits
            self.head = self.head.of_length(int(digits))
        return stop + len(after)


def remember(raw: bytes, head: Head) -> Known[Head] | None:
    return Known(raw, head) if len(raw) <= _LONGEST else None
