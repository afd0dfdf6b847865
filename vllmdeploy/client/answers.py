"""Answers with attributes, as the openai SDK's objects have them, over plain JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

# Fields of OpenAI's answers that an engine may leave out; the SDK says None for them.
_OPTIONAL = frozenset(
    {
        *("annotations", "audio", "content", "function_call", "reasoning", "reasoning_content"),
        *("refusal", "role", "tool_calls", "logprobs", "finish_reason", "stop_reason", "text"),
        *("usage", "system_fingerprint", "service_tier", "prompt_logprobs", "kv_transfer_params"),
        *("completion_tokens_details", "prompt_tokens_details", "name", "created"),
    }
)


class Answer:
    """Reads like the SDK's: `answer.choices[0].message.content`. What an engine adds is there too.

    A name that is neither in the answer nor one of OpenAI's optional fields is an AttributeError.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # copy and pickle ask before there is anything to ask
        if name in self._fields:
            return _wrapped(self._fields[name])
        if name in _OPTIONAL:
            return None
        raise AttributeError(f"no {name!r} in this answer; it has: {', '.join(self._fields)}")

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, _wrapped(value)) for name, value in self._fields.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it compares by content that is a dict

    def __repr__(self) -> str:
        return f"Answer({', '.join(f'{name}={value!r}' for name, value in self)})"

    def __reduce__(self) -> tuple[type[Answer], tuple[dict[str, Any]]]:
        return Answer, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        return dict(self._fields)

    def to_json(self, *, indent: int | None = 2) -> str:
        return json.dumps(self._fields, indent=indent, ensure_ascii=False)

    def model_dump(self) -> dict[str, Any]:
        return self.to_dict()

    def model_dump_json(self, *, indent: int | None = None) -> str:
        return self.to_json(indent=indent)


def _wrapped(value: object) -> object:
    if isinstance(value, dict):
        return Answer(cast("dict[str, Any]", value))
    if isinstance(value, list):
        return [_wrapped(item) for item in cast("list[object]", value)]
    return value


def answer_of(raw: bytes) -> Answer:
    """Raises ValueError for what is not a JSON object."""
    value: Any = json.loads(raw)
    if not isinstance(value, dict):
        raise ValueError("the answer is not a JSON object")
    return Answer(cast("dict[str, Any]", value))
