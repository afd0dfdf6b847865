"""multipart/form-data, read in pieces: the parts of a form as they come, none of them kept."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

_TYPE = re.compile(r"multipart/form-data\s*;(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"content-disposition\s*:\s*form-data\s*(;.*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';\s*(name|filename)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))')
_ESCAPED = re.compile(rb"\\(.)")
_HEAD_MAX = 8192
_PARTS_MAX = 16
_PREAMBLE, _AFTER, _HEAD, _DATA, _END = range(5)


class BadForm(ValueError):
    """The body is not the form that its content type promises."""


class Part(NamedTuple):
    """The beginning of one; `filename` None: a plain field."""

    name: str
    filename: str | None


# A new part, or more bytes of the latest.
Event: TypeAlias = Part | bytes


def boundary_of(content_type: str) -> bytes:
    form = _TYPE.fullmatch(content_type.strip())
    found = _BOUNDARY.search(form["rest"]) if form else None
    if found is None:
        raise BadForm("the content type must be multipart/form-data with a boundary")
    return (found[1] or found[2]).encode("latin-1")


class Form:
    """`feed` gives what each piece brings; `end` raises where the form was cut off."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._held = b"\r\n"  # so that the first delimiter is like all others
        self._state = _PREAMBLE
        self._parts = 0

    def feed(self, piece: bytes) -> list[Event]:
        self._held += piece
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def end(self) -> None:
        if self._state != _END:
            raise BadForm("the form was cut off")

    def _step(self, events: list[Event]) -> bool:
        """True while there may be more to read in what is held."""
        if self._state in (_PREAMBLE, _DATA):
            return self._until_delimiter(events)
        if self._state == _AFTER:
            return self._after_delimiter()
        if self._state == _HEAD:
            return self._head(events)
        self._held = b""  # an epilogue means nothing
        return False

    def _until_delimiter(self, events: list[Event]) -> bool:
        at = self._held.find(self._delimiter)
        sure = at if at >= 0 else len(self._held) - len(self._delimiter) + 1
        if sure > 0:
            if self._state == _DATA:
                events.append(self._held[:sure])
            self._held = self._held[sure:]
        if at < 0:
            return False
        self._held = self._held[len(self._delimiter) :]
        self._state = _AFTER
        return True

    def _after_delimiter(self) -> bool:
        if len(self._held) < 2:
            return False
        if self._held.startswith(b"--"):
            self._state = _END
        elif self._held.startswith(b"\r\n"):
            self._state = _HEAD
        else:
            raise BadForm("a boundary is not at the end of its line")
        return True

    def _head(self, events: list[Event]) -> bool:
        end = self._held.find(b"\r\n\r\n", 0, _HEAD_MAX)
        if end < 0:
            if len(self._held) >= _HEAD_MAX:
                raise BadForm("the head of a part is too long")
            return False
        self._parts += 1
        if self._parts > _PARTS_MAX:
            raise BadForm(f"the form has more than {_PARTS_MAX} parts")
        events.append(_part(self._held[:end]))
        self._held = self._held[end + 4 :]
        self._state = _DATA
        return True


def _part(head: bytes) -> Part:
    for line in head.split(b"\r\n"):
        disposition = _DISPOSITION.fullmatch(line)
        if disposition is None:
            continue
        found: dict[bytes, bytes] = {}
        for name, quoted, plain in _PARAMETER.findall(disposition[1]):
            found.setdefault(name, _ESCAPED.sub(rb"\1", quoted) or plain)
        if b"name" in found:
            name, filename = found[b"name"], found.get(b"filename")
            return Part(_text(name), None if filename is None else _text(filename))
    raise BadForm("a part has no name")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
