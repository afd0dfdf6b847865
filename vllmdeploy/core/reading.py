"""Numbers and JSON out of text that anybody may have written: a value, or None."""

from __future__ import annotations

import json
import math
import re
from typing import Any, cast

# int() also takes other scripts' digits and fails on very long ones; hosts write neither.
_WHOLE = re.compile(r"-?[0-9]{1,18}")


def whole(text: str) -> int | None:
    return int(text) if _WHOLE.fullmatch(text) else None


def number(value: object) -> float | None:
    """A JSON value as a finite number; JSON's own readers take NaN, Infinity and 400 digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def count(value: object) -> int:
    """A JSON value as a whole number; 0 where it is none."""
    found = number(value)
    return 0 if found is None else int(found)


def fields(value: object) -> dict[str, Any]:
    """A JSON object as it is; anything else has no fields."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def strings(value: object) -> dict[str, str]:
    """The text fields of a JSON object."""
    return {key: text for key, text in fields(value).items() if isinstance(text, str)}


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None. Deep nesting ends Python's reader, not us."""
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return fields(cast("object", found)) if isinstance(found, dict) else None


def json_line(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object: what comes before is banners and warnings.

    Lines end at a line feed alone; JSON may hold the other signs that Python counts as line ends.
    """
    for line in reversed(text.split("\n")):
        found = json_object(line) if line.startswith("{") else None
        if found is not None:
            return found
    return None
