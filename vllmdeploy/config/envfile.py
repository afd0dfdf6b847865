"""Reads config.env: `KEY=VALUE` lines, parsed and never run, every problem with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.config.values import fault, shown

FILE_LIMIT = 1 << 20
_BLANK = " \t"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMENT = re.compile(r"[ \t]#")
_ESCAPED = re.compile(r'\\(["\\])')
_QUOTED = {
    "'": re.compile(r"'([^']*)'"),
    '"': re.compile(r'"((?:[^"\\]|\\["\\]|\\(?!["\\]))*)"'),
}
_BARE = re.compile(r"[A-Za-z0-9_@%+=:,./~^-]*")


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class EnvFile:
    """What a text holds; `problems` are worded `FILE:LINE: KEY: what is wrong`."""

    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()


def read_text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 stay in it and are refused where they stand."""
    with path.open("rb") as file:
        content = file.read(FILE_LIMIT + 1)
    if len(content) > FILE_LIMIT:
        raise ValueError(f"larger than {FILE_LIMIT:,} bytes: this is not a settings file")
    return content.decode("utf-8", errors="surrogateescape")


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; a leading BOM and Windows line ends are no part of them."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def parse(text: str, *, name: str) -> EnvFile:
    entries: list[Entry] = []
    problems: list[str] = []
    first_seen: dict[str, int] = {}
    for number, line in lines(text):
        stripped = line.strip(_BLANK)
        if not stripped or stripped.startswith("#"):
            continue
        try:
            key, value = _assignment(stripped)
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}")
            continue
        if key in first_seen:
            problems.append(f"{name}:{number}: {key}: already set in line {first_seen[key]}")
            continue
        first_seen[key] = number
        entries.append(Entry(key, value, number))
    return EnvFile(tuple(entries), tuple(problems))


def quote(value: str) -> str:
    """A value as `parse` reads it back."""
    if _BARE.fullmatch(value):
        return value
    if "'" not in value:
        return f"'{value}'"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _assignment(line: str) -> tuple[str, str]:
    left, equals, right = line.partition("=")
    if not equals:
        raise ValueError(f"{shown(line, limit=30)} is not KEY=VALUE")
    key = re.sub(r"^export[ \t]+", "", left).rstrip(_BLANK)
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"{shown(key, limit=30)} is not a key: letters, digits and _ only")
    try:
        value = _value(right)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    problem = fault(value)
    if problem:
        raise ValueError(f"{key}: {problem}")
    return key, value


def _value(text: str) -> str:
    """What stands after the `=`. A `#` starts a comment only behind a blank."""
    begun = text.lstrip(_BLANK)
    if begun[:1] not in _QUOTED:
        return _COMMENT.split(text, maxsplit=1)[0].strip(_BLANK)
    match = _QUOTED[begun[0]].match(begun)
    if match is None:
        raise ValueError(f"the opening {begun[0]} has no closing one in this line")
    after = begun[match.end() :]
    if after.strip(_BLANK) and not re.match(r"[ \t]+#", after):
        raise ValueError(
            "text after the closing quote; a value with both kinds of quotes is written "
            'in double quotes, with \\" for each of those inside'
        )
    return match[1] if begun[0] == "'" else _ESCAPED.sub(r"\1", match[1])
