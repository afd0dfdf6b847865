"""From the text of an answer to the value that was asked for, and how to ask again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, cast

from vllmdeploy.batch.records import CHAT, Row, with_body
from vllmdeploy.batch.schema import check_schema, problem
from vllmdeploy.batch.strictjson import NotStrictJson, load
from vllmdeploy.errors import UsageError

Parse: TypeAlias = Callable[[str], object]
"""Text of an answer to a JSON value; a ValueError says what is wrong with the text."""

_FENCE = re.compile(r"\s*```[a-zA-Z0-9]*\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_REPAIR = (
    "That answer cannot be used: {problem}. "
    "Answer again with the corrected answer only, without any other words."
)


def parse_json(text: str) -> object:
    """Models like to put JSON into a Markdown fence; that is taken off."""
    fenced = _FENCE.fullmatch(text)
    return load((fenced.group(1) if fenced else text).strip().encode("utf-8", "replace"))


def regex_parser(pattern: str) -> Parse:
    """Named groups become an object, else the first group, else the whole match."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError(f"--parse regex:{pattern}: {error}") from error

    def parse(text: str) -> object:
        match = compiled.search(text)
        if match is None:
            raise ValueError(f"nothing matches {pattern}")
        return match.groupdict() or match.group(1 if compiled.groups else 0)

    return parse


def schema_parser(schema: object) -> Parse:
    def parse(text: str) -> object:
        value = parse_json(text)
        found = problem(value, schema)
        if found:
            raise ValueError(found)
        return value

    return parse


def parser_of(words: str) -> Parse:
    """`json`, or `regex:PATTERN`."""
    if words == "json":
        return parse_json
    kind, _, pattern = words.partition(":")
    if kind == "regex" and pattern:
        return regex_parser(pattern)
    raise UsageError(f"--parse {words}: unknown", hint="json, or regex:PATTERN")


def read_schema(path: Path) -> dict[str, object]:
    try:
        schema = load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot read the schema: {error.strerror}") from error
    except NotStrictJson as error:
        raise UsageError(f"{path}: {error}", hint="--schema takes a JSON Schema") from error
    check_schema(schema, str(path))
    return cast("dict[str, object]", schema)


def structured(schema: object) -> Mapping[str, object]:
    """What makes an engine hold to the schema while it writes."""
    named = {"name": "row", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def repaired(row: Row, text: str, wrong: str) -> Row:
    """The same question, with the answer and what was wrong with it; a raw prompt just again."""
    messages = row.body.get("messages")
    if row.path != CHAT or not isinstance(messages, list):
        return row
    asked = (
        *cast("list[object]", messages),
        {"role": "assistant", "content": text},
        {"role": "user", "content": _REPAIR.format(problem=wrong)},
    )
    return with_body(row, {**row.body, "messages": list(asked)})
