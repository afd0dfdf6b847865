"""JSON as vendor tools really print it: commas missing, text between, cut off in the middle."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_START = re.compile(r"[{\[]")
# An unterminated string runs to the end of the text, so that reading stays linear.
_TOKEN = re.compile(
    r'"(?P<string>(?:[^"\\]|\\.)*)"?|(?P<mark>[{}\[\]:,])'
    r"|(?P<number>-?\d{1,15}(?:\.\d{1,15})?)|(?P<word>true|false|null)",
    re.DOTALL,
)
_WORDS: dict[str, object] = {"true": True, "false": False, "null": None}
_DEEPEST = 32


@dataclass(slots=True)
class _Open:
    """An object or array that is not closed yet, and the key that waits for its value."""

    value: dict[str, Any] | list[Any]
    key: str | None = None
    keyed: bool = False

    def put(self, value: object) -> None:
        if isinstance(self.value, list):
            self.value.append(value)
        elif self.keyed:
            if self.key:
                self.value[self.key] = value
            self.key, self.keyed = None, False
        else:
            self.key = value if isinstance(value, str) else None


@dataclass(slots=True)
class _Reading:
    open: list[_Open] = field(default_factory=list[_Open])
    root: object = None
    whole: bool = False


def parse(text: str) -> tuple[object, bool]:
    """The first object or array in the text, and whether it came to its end. Never raises."""
    start = _START.search(text)
    if start is None:
        return None, False
    try:
        return json.JSONDecoder().raw_decode(text, start.start())[0], True
    except (ValueError, RecursionError):
        return _repaired(text[start.start() :])


def _repaired(text: str) -> tuple[object, bool]:
    reading = _Reading()
    for token in _TOKEN.finditer(text):
        if token["mark"] is None:
            _value(reading, token)
        elif not _mark(reading, token["mark"]):
            break
    return reading.root, reading.whole


def _value(reading: _Reading, token: re.Match[str]) -> None:
    if token["string"] is not None:
        reading.open[-1].put(token["string"])
    elif token["number"] is not None:
        reading.open[-1].put(float(token["number"]))
    else:
        reading.open[-1].put(_WORDS[token["word"]])


def _mark(reading: _Reading, mark: str) -> bool:
    """Whether reading goes on: not after the root is closed, nor below the deepest level."""
    if mark in "{[":
        value: dict[str, Any] | list[Any] = {} if mark == "{" else []
        if reading.open:
            reading.open[-1].put(value)
        else:
            reading.root = value
        reading.open.append(_Open(value))
        return len(reading.open) <= _DEEPEST
    if mark in "}]":
        reading.open.pop()
        reading.whole = not reading.open
        return not reading.whole
    here = reading.open[-1]
    here.keyed = mark == ":" and here.key is not None
    if mark == ",":
        here.key = None
    return True
