"""The keywords of JSON Schema that look at one value only, and what a rule of each must be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[object], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": _is_number,
    "integer": lambda v: _is_number(v) and float(cast("float", v)).is_integer(),
}


def _type(value: object, rule: object) -> str:
    wanted = [rule] if isinstance(rule, str) else cast("list[str]", rule)
    return "" if any(_TYPES[name](value) for name in wanted) else f"not {' or '.join(wanted)}"


def _same(left: object, right: object) -> bool:
    """As JSON sees it: 1 is 1.0, and true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return left == right


def _enum(value: object, rule: object) -> str:
    options = cast("list[object]", rule)
    return "" if any(_same(value, option) for option in options) else f"not one of {options}"


def _required(value: object, rule: object) -> str:
    if not isinstance(value, dict):
        return ""
    missing = [name for name in cast("list[str]", rule) if name not in value]
    return f"{', '.join(missing)} missing" if missing else ""


def _bound(
    applies: Callable[[object], bool],
    measure: Callable[[object], float],
    fits: Callable[[float, float], bool],
    words: str,
) -> Callable[[object, object], str]:
    def check(value: object, rule: object) -> str:
        if not applies(value) or fits(measure(value), cast("float", rule)):
            return ""
        return f"{words} {rule}"

    return check


def _size(value: object) -> float:
    return len(cast("str", value))


def _number(value: object) -> float:
    return cast("float", value)


PLAIN: dict[str, Callable[[object, object], str]] = {
    "type": _type,
    "enum": _enum,
    "const": lambda v, r: "" if _same(v, r) else f"not {r!r}",
    "required": _required,
    "pattern": lambda v, r: (
        "" if not isinstance(v, str) or re.search(cast("str", r), v) else f"does not match {r}"
    ),
    "minimum": _bound(_is_number, _number, lambda v, r: v >= r, "below"),
    "maximum": _bound(_is_number, _number, lambda v, r: v <= r, "above"),
    "exclusiveMinimum": _bound(_is_number, _number, lambda v, r: v > r, "not above"),
    "exclusiveMaximum": _bound(_is_number, _number, lambda v, r: v < r, "not below"),
    "minLength": _bound(_TYPES["string"], _size, lambda v, r: v >= r, "shorter than"),
    "maxLength": _bound(_TYPES["string"], _size, lambda v, r: v <= r, "longer than"),
    "minItems": _bound(_TYPES["array"], _size, lambda v, r: v >= r, "fewer items than"),
    "maxItems": _bound(_TYPES["array"], _size, lambda v, r: v <= r, "more items than"),
}


def _is_words(rule: object) -> bool:
    return isinstance(rule, list) and all(isinstance(r, str) for r in cast("list[object]", rule))


def _is_type(rule: object) -> bool:
    names = [rule] if isinstance(rule, str) else rule
    return _is_words(names) and bool(names) and set(cast("list[str]", names)) <= set(_TYPES)


def _is_pattern(rule: object) -> bool:
    try:
        re.compile(cast("str", rule))
    except (re.error, TypeError):
        return False
    return True


_VALID: dict[str, Callable[[object], bool]] = {
    "type": _is_type,
    "enum": lambda r: isinstance(r, list) and bool(cast("list[object]", r)),
    "const": lambda _: True,
    "required": _is_words,
    "pattern": _is_pattern,
}


def valid_rule(keyword: str, rule: object) -> bool:
    return _VALID.get(keyword, _is_number)(rule)
