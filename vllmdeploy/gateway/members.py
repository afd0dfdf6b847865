"""The members of a JSON object, found without reading their values: a prompt of 20 MB is skipped
over at the speed of memory, in slices between which others are served."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Generator
from typing import TypeVar

from vllmdeploy.gateway.jsonvalue import loads

# Up to here, reading everything at once is quicker than looking for a part.
SMALL = 64 * 1024
_SLICE = 256 * 1024
_STEPS = 2048  # between two turns of the others
_SPACE = re.compile(rb"[ \t\n\r]*")
_STRUCTURE = re.compile(rb'["\[\]{}]')
_SCALAR = re.compile(rb"-?[0-9][0-9.eE+\-]*|true|false|null")
_DEPTH_MAX = 100
_NAMES_MAX = 1000

Span = tuple[int, int]
Steps = Generator[None, None, int]
_T = TypeVar("_T")


class NotJson(ValueError):
    pass


async def members(body: bytes) -> dict[str, bytes]:
    """Name and raw value of each member of the object that `body` is; the last of a name counts,
    as it does in the engine."""
    return {name: body[start:end] for name, (start, end) in (await spans(body)).items()}


async def spans(body: bytes) -> dict[str, Span]:
    """Where each member's value begins and ends: a value of 20 MB is not even copied."""
    return await _run(_object(body))


async def elements(body: bytes, enough: int | None = None) -> list[bytes]:
    """The raw values of the array that `body` is; of its beginning, once `enough` bytes are seen:
    a prompt can be a million tokens."""
    return [body[start:end] for start, end in await _run(_array(body, enough))]


async def _run(scan: Generator[None, None, _T]) -> _T:
    while True:
        try:
            next(scan)
        except StopIteration as end:
            found: _T = end.value
            return found
        await asyncio.sleep(0)


def _object(body: bytes) -> Generator[None, None, dict[str, Span]]:
    found: dict[str, Span] = {}
    count = 0
    at = _expect(body, _skip(body, 0), b"{")
    if body[at : at + 1] != b"}":
        while True:
            key_end = yield from _string(body, at)
            name = _text(body[at:key_end])
            start = _skip(body, _expect(body, _skip(body, key_end), b":"))
            end = yield from _value(body, start)
            found[name] = (start, end)
            count += 1
            if count > _NAMES_MAX:
                raise NotJson(f"more than {_NAMES_MAX} names")
            at = _skip(body, end)
            if body[at : at + 1] == b"}":
                break
            at = _skip(body, _expect(body, at, b","))
    _nothing_after(body, at + 1)
    return found


def _array(body: bytes, enough: int | None) -> Generator[None, None, list[Span]]:
    found: list[Span] = []
    at = _skip(body, _expect(body, _skip(body, 0), b"["))
    if body[at : at + 1] != b"]":
        while True:
            end = yield from _value(body, at)
            found.append((at, end))
            if enough is not None and end > enough:
                return found
            if not len(found) % _STEPS:
                yield
            at = _skip(body, end)
            if body[at : at + 1] == b"]":
                break
            at = _skip(body, _expect(body, at, b","))
    _nothing_after(body, at + 1)
    return found


def _value(body: bytes, at: int) -> Steps:
    first = body[at : at + 1]
    if first == b'"':
        return (yield from _string(body, at))
    if first in (b"{", b"["):
        return (yield from _nested(body, at))
    match = _SCALAR.match(body, at)
    if match is None:
        raise NotJson(f"no value at byte {at}")
    return match.end()


def _string(body: bytes, at: int) -> Steps:
    """Where the string that starts at `at` ends. A quote ends it unless an odd number of
    backslashes stands before."""
    if body[at : at + 1] != b'"':
        raise NotJson(f"no string at byte {at}")
    start = at = at + 1
    steps = 0
    while True:
        limit = at + _SLICE
        quote = body.find(b'"', at, limit)
        if quote >= 0 and not _backslashes(body, start, quote) % 2:
            return quote + 1
        if quote < 0 and limit >= len(body):
            raise NotJson("a string does not end")
        at = limit if quote < 0 else quote + 1
        steps += 1
        if quote < 0 or not steps % _STEPS:
            yield


def _backslashes(body: bytes, start: int, quote: int) -> int:
    """How many stand before the quote. Looks back in growing windows: mostly there is none or
    one, and a hostile run of millions must not be walked byte by byte."""
    count = 0
    window = 8
    end = quote
    while end > start:
        piece = body[max(start, end - window) : end]
        run = len(piece) - len(piece.rstrip(b"\\"))
        count += run
        if run < len(piece):
            break
        end -= len(piece)
        window *= 8
    return count


def _nested(body: bytes, at: int) -> Steps:
    """Where the object or array that starts at `at` ends; brackets are counted, not matched: the
    engine reads the value itself and refuses what is not JSON."""
    depth = steps = 0
    while True:
        limit = at + _SLICE
        match = _STRUCTURE.search(body, at, limit)
        if match is None and limit >= len(body):
            raise NotJson("a value does not end")
        at = limit if match is None else match.end()
        steps += 1
        if match is None or not steps % _STEPS:
            yield
        if match is None:
            continue
        mark = match[0]
        if mark == b'"':
            at = yield from _string(body, at - 1)
        elif mark in b"[{":
            depth += 1
            if depth > _DEPTH_MAX:
                raise NotJson("nested too deeply")
        else:
            depth -= 1
            if not depth:
                return at


def _skip(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match else at


def _expect(body: bytes, at: int, mark: bytes) -> int:
    if body[at : at + 1] != mark:
        raise NotJson(f"{mark.decode()} expected at byte {at}")
    return _skip(body, at + 1)


def _nothing_after(body: bytes, at: int) -> None:
    if _skip(body, at) != len(body):
        raise NotJson("something follows the value")


def _text(raw: bytes) -> str:
    try:
        name = loads(raw)
    except ValueError as error:
        raise NotJson("a name is not a JSON string") from error
    if not isinstance(name, str):
        raise NotJson("a name is not a JSON string")
    return name


def compose(parts: dict[str, bytes]) -> bytes:
    """An object of raw values."""
    inside = b",".join(json.dumps(name).encode() + b":" + raw for name, raw in parts.items())
    return b"{" + inside + b"}"
