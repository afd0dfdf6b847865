"""Rows that begin alike next to each other, so that the engines' prefix caches are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

from vllmdeploy.batch.records import Row

_WINDOW_ROWS = 4096
_WINDOW_BYTES = 32 << 20
_COMPARED = 4096

Other = TypeVar("Other")


def prompt_text(row: Row) -> str:
    """The start of what the engine will read."""
    prompt = row.body.get("prompt")
    if isinstance(prompt, str):
        return prompt[:_COMPARED]
    messages = row.body.get("messages")
    if not isinstance(messages, list):
        return ""
    texts = (_content(message) for message in cast("list[object]", messages))
    return "\n".join(texts)[:_COMPARED]


def _content(message: object) -> str:
    if not isinstance(message, dict):
        return ""
    content = cast("dict[str, object]", message).get("content")
    return content if isinstance(content, str) else ""


def grouped(rows: Iterable[Row | Other]) -> Iterator[Row | Other]:
    """Sorts within windows: constant memory, and a cache holds no more than a window anyway."""
    window: list[Row] = []
    size = 0
    for row in rows:
        if not isinstance(row, Row):
            yield row
            continue
        window.append(row)
        size += len(row.payload) + len(row.raw)
        if len(window) >= _WINDOW_ROWS or size >= _WINDOW_BYTES:
            yield from sorted(window, key=prompt_text)
            window, size = [], 0
    yield from sorted(window, key=prompt_text)
