"""JSON Schema as structured output uses it; what is not understood is refused at the start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from vllmdeploy.batch.keywords import PLAIN, valid_rule
from vllmdeploy.errors import UsageError

_DEEPEST = 64
_WORDS_ONLY = frozenset(
    {"$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples"}
    | {"$comment", "format", "deprecated"}
)
_OF_SCHEMAS = ("anyOf", "oneOf", "allOf")
_BY_NAME = ("properties", "$defs", "definitions")
_KNOWN = frozenset({*PLAIN, *_OF_SCHEMAS, "properties", "additionalProperties", "items", "$ref"})


def problem(value: object, schema: object, at: str = "answer") -> str:
    """What does not fit, empty where all does."""
    return _Checker(schema).problem(value, schema, at, 0)


def check_schema(schema: object, where: str) -> None:
    """Refuses at once what could not be checked later: a rule that is skipped is no rule."""
    for at, node in _nodes(schema, where, 0):
        for keyword, rule in node.items():
            if keyword in _WORDS_ONLY:
                continue
            if keyword not in _KNOWN:
                raise UsageError(
                    f"{at}: the schema keyword {keyword} is not supported",
                    hint=f"supported: {', '.join(sorted(_KNOWN))}",
                )
            if keyword == "$ref":
                _resolve(schema, rule)
            elif keyword in PLAIN and not valid_rule(keyword, rule):
                raise UsageError(f"{at}: {keyword} cannot be {rule!r}")


def _nodes(schema: object, at: str, depth: int) -> Iterator[tuple[str, Mapping[str, object]]]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict) or depth > _DEEPEST:
        raise UsageError(f"{at}: a schema must be an object, nested {_DEEPEST} deep at most")
    node = cast("dict[str, object]", schema)
    yield at, node
    for keyword, rule in node.items():
        for name, inner in _inner_schemas(keyword, rule, f"{at}.{keyword}"):
            yield from _nodes(inner, name, depth + 1)


def _inner_schemas(keyword: str, rule: object, at: str) -> Iterable[tuple[str, object]]:
    if keyword in ("items", "additionalProperties"):
        return ((at, rule),)
    if keyword in _OF_SCHEMAS:
        if not isinstance(rule, list) or not rule:
            raise UsageError(f"{at}: must be a list of schemas")
        return [(at, option) for option in cast("list[object]", rule)]
    if keyword in _BY_NAME:
        if not isinstance(rule, dict):
            raise UsageError(f"{at}: must be an object of schemas")
        return [
            (f"{at}.{name}", option) for name, option in cast("dict[str, object]", rule).items()
        ]
    return ()


class _Checker:
    def __init__(self, root: object) -> None:
        self._root = root

    def problem(self, value: object, schema: object, at: str, depth: int) -> str:
        if depth > _DEEPEST:
            return f"{at}: nested too deeply"
        if isinstance(schema, bool):
            return "" if schema else f"{at}: nothing is allowed here"
        rules = cast("Mapping[str, object]", schema)
        if "$ref" in rules:
            found = self.problem(value, _resolve(self._root, rules["$ref"]), at, depth + 1)
            if found:
                return found
        for keyword, rule in rules.items():
            check = PLAIN.get(keyword)
            found = check(value, rule) if check else ""
            if found:
                return f"{at}: {found}"
        return self._deeper(value, rules, at, depth)

    def _deeper(self, value: object, rules: Mapping[str, object], at: str, depth: int) -> str:
        found = self._combined(value, rules, at, depth)
        if not found and isinstance(value, dict):
            found = self._members(cast("dict[str, object]", value), rules, at, depth)
        if not found and isinstance(value, list) and "items" in rules:
            for index, item in enumerate(cast("list[object]", value)):
                found = found or self.problem(item, rules["items"], f"{at}[{index}]", depth + 1)
        return found

    def _members(
        self, value: dict[str, object], rules: Mapping[str, object], at: str, depth: int
    ) -> str:
        known = cast("Mapping[str, object]", rules.get("properties", {}))
        others = rules.get("additionalProperties", True)
        for name, member in value.items():
            found = self.problem(member, known.get(name, others), f"{at}.{name}", depth + 1)
            if found:
                return found
        return ""

    def _combined(self, value: object, rules: Mapping[str, object], at: str, depth: int) -> str:
        for keyword in _OF_SCHEMAS:
            if keyword not in rules:
                continue
            options = cast("list[object]", rules[keyword])
            found = [self.problem(value, option, at, depth + 1) for option in options]
            fitting = found.count("")
            if keyword == "allOf" and fitting < len(found):
                return next(filter(None, found))
            if fitting == 0 and keyword != "allOf":
                return f"{at}: fits none of {keyword}"
            if keyword == "oneOf" and fitting > 1:
                return f"{at}: fits {fitting} of oneOf"
        return ""


def _resolve(root: object, reference: object) -> object:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise UsageError(f"$ref {reference!r}: only references within the schema are followed")
    found: object = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        inner = cast("dict[str, object]", found).get(name) if isinstance(found, dict) else None
        if inner is None:
            raise UsageError(f"$ref {reference}: not found in the schema")
        found = inner
    return found
