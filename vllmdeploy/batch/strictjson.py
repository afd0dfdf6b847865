"""JSON as RFC 8259 has it: UTF-8, no NaN, no half surrogates, no surprises from deep nesting."""

from __future__ import annotations

import codecs
import json
from typing import cast

_LONGEST_REASON = 200


class NotStrictJson(ValueError):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason[:_LONGEST_REASON])
        self.kind = kind


def _refuse_constant(name: str) -> object:
    raise NotStrictJson("bad_json", f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def load(raw: bytes) -> object:
    try:
        return _DECODER.decode(raw.decode())
    except UnicodeDecodeError as error:
        raise NotStrictJson("not_utf8", f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        if b"\0" in raw:
            raise NotStrictJson("nul", f"a NUL at byte {raw.index(0) + 1}") from error
        if raw.startswith(codecs.BOM_UTF8):
            raise NotStrictJson("bad_json", "a BOM that is not at the start of the file") from error
        raise NotStrictJson("bad_json", f"{error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise NotStrictJson("bad_json", "nested too deeply") from error
    except NotStrictJson:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise NotStrictJson("bad_json", str(error)) from error


def load_object(raw: bytes) -> dict[str, object]:
    value = load(raw)
    if not isinstance(value, dict):
        raise NotStrictJson("not_an_object", f"{_name(value)}, not an object")
    return cast("dict[str, object]", value)


def dump(value: object) -> bytes:
    """Compact, one line; a half surrogate, which UTF-8 has no bytes for, is escaped."""
    text = _ENCODER.encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def unpaired_surrogate(value: object) -> bool:
    try:
        _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        return True
    return False


def _name(value: object) -> str:
    match value:
        case list():
            return "a list"
        case str():
            return "a string"
        case bool():
            return "true or false"
        case None:
            return "null"
        case _:
            return "a number"
