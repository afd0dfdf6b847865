"""JSON of others, read without trusting any of it to be of the expected kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

Object = Mapping[str, object]
NOTHING: Object = {}
_DECODER = json.JSONDecoder()


def loads(text: bytes | str) -> object:
    """Raises ValueError for anything that is not JSON, also when it is too deep to be read.

    Most bodies are an object with nothing around it, which is read in half the time; whatever
    else there is goes the long way, so that both ways read the same.
    """
    try:
        if isinstance(text, bytes) and text[:1] == b"{" and text[1:2] != b"\0" and text.isascii():
            value, end = cast("tuple[object, int]", _DECODER.raw_decode(text.decode("ascii")))
            if end == len(text):
                return value
        return cast("object", json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def as_object(value: object) -> Object | None:
    return cast("Object", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


def as_texts(value: object) -> list[str] | None:
    """A list of texts that are not empty."""
    found = as_list(value)
    if found is None:
        return None
    texts = [one for one in found if isinstance(one, str) and one]
    return texts if len(texts) == len(found) else None


def as_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
