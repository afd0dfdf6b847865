"""From an input line to a request, or to the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, cast

from vllmdeploy.batch.compact import SeenIds
from vllmdeploy.batch.lines import Line
from vllmdeploy.batch.strictjson import NotStrictJson, dump, load_object, unpaired_surrogate

Json: TypeAlias = object
Fields: TypeAlias = Mapping[str, Json]
# What a row becomes: a prompt for one user message, the messages, or a whole request body.
Read: TypeAlias = Callable[[Fields], "str | list[Json] | Fields"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PATHS = frozenset(
    {
        *(CHAT, COMPLETIONS, "/v1/embeddings", "/v1/responses"),
        *("/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score"),
    }
)
_OPENAI_KEYS = ("method", "url", "body")
# Of a simple row these go into the request; anything else in it is the user's own.
_SAMPLING = frozenset(
    {
        *("model", "max_tokens", "max_completion_tokens", "min_tokens", "temperature", "top_p"),
        *("top_k", "min_p", "n", "stop", "stop_token_ids", "seed", "ignore_eos", "priority"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "prompt_logprobs", "response_format", "tools"),
        *("tool_choice", "chat_template_kwargs", "structured_outputs", "reasoning_effort"),
    }
)
# vLLM completes 16 tokens where nothing is said, which surprises; /generate has the same 256.
_DEFAULT_PROMPT_TOKENS = 256


class Row(NamedTuple):
    """`body` is the request as it is sent; `raw` the input line, one JSON object."""

    line: int
    custom_id: str
    path: str
    body: dict[str, Json]
    payload: bytes
    raw: bytes


class BadRow(NamedTuple):
    line: int
    kind: str
    reason: str
    custom_id: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows become requests; `defaults` fill in what a row leaves open. With an `endpoint` rows
    must be in OpenAI Batch form, and for it."""

    model: str | None = None
    max_tokens: int | None = None
    read: Read | None = None
    defaults: Mapping[str, Json] = field(default_factory=dict[str, Json])
    endpoint: str | None = None


class _Unfit(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = reason


def parse_line(line: Line, shape: Shape, seen: SeenIds) -> Row | BadRow:
    custom_id: str | None = None
    try:
        fields = _object(line)
        custom_id = _custom_id(fields)
        if custom_id is not None:
            first = seen.first_line(custom_id, line.number)
            if first != line.number:
                raise _Unfit("doubled_custom_id", f"custom_id is already that of line {first}")
        path, body = _request(fields, shape)
        name = f"line-{line.number}" if custom_id is None else custom_id
        return Row(line.number, name, path, body, _payload(body), (line.raw or b"").strip())
    except _Unfit as unfit:
        return BadRow(line.number, unfit.kind, unfit.reason, custom_id)


def _object(line: Line) -> dict[str, Json]:
    raw = line.raw
    if raw is None:
        raise _Unfit("too_long", f"the line has {line.size} bytes")
    if not raw.strip():
        raise _Unfit("blank", "the line is blank")
    try:
        fields = load_object(raw)
    except NotStrictJson as error:
        raise _Unfit(error.kind, str(error)) from error
    if b"\\u" in raw and unpaired_surrogate(fields):
        raise _Unfit("lone_surrogate", "a \\u escape is half of a surrogate pair")
    return fields


def _custom_id(fields: Fields) -> str | None:
    custom_id = fields.get("custom_id")
    if custom_id is None or (isinstance(custom_id, str) and custom_id):
        return custom_id
    raise _Unfit("bad_row", "custom_id must be a string that is not empty")


def _request(fields: dict[str, Json], shape: Shape) -> tuple[str, dict[str, Json]]:
    if shape.read is not None:
        path, body = _read_request(fields, shape.read)
    elif shape.endpoint is not None:
        path, body = _openai_request(fields)
        if path != shape.endpoint:
            raise _Unfit("bad_row", f"url must be {shape.endpoint}, the batch's endpoint")
    elif any(key in fields for key in _OPENAI_KEYS):
        path, body = _openai_request(fields)
    else:
        path, body = _simple_request(fields)
    for key, value in shape.defaults.items():
        body.setdefault(key, value)
    if shape.model is not None:
        body.setdefault("model", shape.model)
    if shape.max_tokens is not None and "max_completion_tokens" not in body:
        body.setdefault("max_tokens", shape.max_tokens)
    elif path == COMPLETIONS and "url" not in fields:
        body.setdefault("max_tokens", _DEFAULT_PROMPT_TOKENS)
    if body.get("stream"):
        raise _Unfit("bad_row", "a row cannot be streamed: leave out stream")
    return path, body


def _openai_request(fields: Fields) -> tuple[str, dict[str, Json]]:
    missing = [key for key in ("custom_id", *_OPENAI_KEYS) if key not in fields]
    if missing:
        raise _Unfit("missing_key", f"{', '.join(missing)} missing: a row in OpenAI Batch form")
    if fields["method"] != "POST":
        raise _Unfit("bad_row", "method must be POST")
    path, body = fields["url"], fields["body"]
    if not isinstance(path, str) or path not in PATHS:
        raise _Unfit("bad_row", f"url must be one of {', '.join(sorted(PATHS))}")
    if not isinstance(body, dict):
        raise _Unfit("bad_row", "body must be an object")
    return path, dict(cast("Fields", body))


def _simple_request(fields: Fields) -> tuple[str, dict[str, Json]]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if prompt is not None and messages is not None:
        raise _Unfit("bad_row", "prompt and messages are both there: leave one")
    body = {key: value for key, value in fields.items() if key in _SAMPLING}
    if isinstance(prompt, str):
        return COMPLETIONS, {"prompt": prompt, **body}
    if isinstance(messages, list) and messages:
        return CHAT, {"messages": cast("list[Json]", messages), **body}
    if prompt is not None:
        raise _Unfit("bad_row", "prompt must be a string")
    if messages is not None:
        raise _Unfit("bad_row", "messages must be a list that is not empty")
    raise _Unfit("missing_key", "neither prompt nor messages nor body is there")


def _read_request(fields: Fields, read: Read) -> tuple[str, dict[str, Json]]:
    try:
        made = read(fields)
    except Exception as error:  # the user's own code: whatever it says becomes this row's error
        raise _Unfit("read_failed", f"{type(error).__name__}: {error}") from error
    if isinstance(made, str):
        return CHAT, {"messages": [{"role": "user", "content": made}]}
    if isinstance(made, list):
        return CHAT, {"messages": made}
    return (COMPLETIONS if "prompt" in made else CHAT), dict(made)


def _payload(body: Fields) -> bytes:
    try:
        return dump(body)
    except (TypeError, ValueError) as error:  # only a read hook can bring what is not JSON
        raise _Unfit("read_failed", f"not JSON: {error}") from error


def note_custom_id(line: Line, seen: SeenIds) -> None:
    """For a line that is finished already: later ones may not have its custom_id."""
    if line.raw is None or (b"custom_id" not in line.raw and b"\\u" not in line.raw):
        return
    try:
        custom_id = _custom_id(_object(line))
    except _Unfit:
        return
    if custom_id is not None:
        seen.first_line(custom_id, line.number)


def with_body(row: Row, body: Mapping[str, Json]) -> Row:
    fresh = dict(body)
    return row._replace(body=fresh, payload=dump(fresh))
