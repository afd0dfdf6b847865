"""What a request asks for, as far as finding its instance needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllmdeploy.gateway.jsonvalue import Object, as_int, as_list, as_object, loads
from vllmdeploy.gateway.members import SMALL, Span, elements, spans
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.routing.upstream import PREFIX_LENGTHS, Affinity, Request, affinity_of
from vllmdeploy.wire.head import RequestHead

_PREFIX = PREFIX_LENGTHS[-1]
_CHARACTERS_PER_TOKEN = 4
_DEFAULT_MAX_TOKENS = 256
_NUMBER = re.compile(rb"-?[0-9]{1,12}")
_SMALL_NAMES = (
    *("model", "stream", "n", "best_of", "max_tokens", "max_completion_tokens", "user"),
    *("max_output_tokens", "store", "background", "priority"),
)
# These run templates or load tensors of the caller's choice inside the engine.
_REFUSED_NAMES = frozenset({"chat_template", "prompt_embeds", "mm_processor_kwargs"})
_COUNT_NAMES = ("n", "best_of")
_PROMPT_NAMES = ("prompt", "input", "messages", "prompts")
_SESSION_FIELD = b"x-session-id"
_PRIORITY_FIELD = b"x-priority"
_DEADLINE_FIELD = b"x-deadline-ms"
_WISHES = frozenset({_PRIORITY_FIELD, _DEADLINE_FIELD})
_WATCHED_NAMES = _REFUSED_NAMES.union(_COUNT_NAMES, ("stream",))


class Wanted:
    """`request` is worked out when somebody asks for it: not every policy does."""

    __slots__ = ("_fields", "_head", "_now", "_request", "model", "stored", "stream")

    def __init__(self, head: RequestHead, fields: Object, now: float) -> None:
        model = fields.get("model")
        if model is not None and not isinstance(model, str):
            raise Refusal(400, "model must be a text")
        self.model = model or None
        self.stream = fields.get("stream") is True
        self.stored = fields.get("store") is not False or fields.get("background") is True
        self._head = head
        self._fields = fields
        self._now = now
        self._request: Request | None = None
        if not _WISHES.isdisjoint(head.fields):
            self.request()  # refused now if it cannot be read

    def request(self) -> Request:
        if self._request is None:
            self._request = request_of(self._head, self._fields, self._now)
        return self._request


async def read(head: RequestHead, body: bytes, now: float, choices_max: int) -> Wanted:
    """Raises a Refusal for what no engine could answer, and for what it should not be asked."""
    fields = _all_fields(body) if len(body) <= SMALL else await _small_fields(body)
    if not _WATCHED_NAMES.isdisjoint(fields):
        _check(fields, choices_max)
    return Wanted(head, fields, now)


def _check(fields: Object, choices_max: int) -> None:
    for name in _REFUSED_NAMES:
        if fields.get(name) is not None:
            raise Refusal(400, f"{name} is not accepted by this gateway", code="unsupported_field")
    for name in _COUNT_NAMES:
        _check_count(name, fields.get(name), choices_max)
    if not isinstance(fields.get("stream"), (bool, type(None))):
        raise Refusal(400, "stream must be true or false")


def _check_count(name: str, value: object, most: int) -> None:
    """Engines take "64" and 64.0 for 64, so what is not plainly a number must not pass."""
    if value is None:
        return
    count = as_int(value)
    if count is None:
        raise Refusal(400, f"{name} must be a whole number")
    if not 1 <= count <= most:
        raise Refusal(400, f"{name} must be from 1 to {most}")


def request_of(head: RequestHead, fields: Object, now: float) -> Request:
    user = fields.get("user")
    session = head.text(_SESSION_FIELD) or (user if isinstance(user, str) else "")
    text = prompt_text(fields)
    deadline_ms = _header_number(head.fields, _DEADLINE_FIELD)
    priority = _header_number(head.fields, _PRIORITY_FIELD)
    if priority is None:
        priority = as_int(fields.get("priority")) or 0
    return Request(
        affinity=affinity_of(text, session[:256]) if text or session else Affinity(),
        priority=priority,
        deadline=now + deadline_ms / 1000 if deadline_ms is not None else None,
        prompt_tokens=len(text) // _CHARACTERS_PER_TOKEN,
        max_tokens=_max_tokens(fields),
    )


def prompt_text(fields: Object) -> str:
    """The beginning of what the engine will read, the same for the same conversation."""
    for name in ("prompt", "input", "query", "text_1", "messages", "prompts"):
        value = fields.get(name)
        if isinstance(value, str):
            return value
        listed = as_list(value)
        if listed is not None:
            return _joined(listed)
    return ""


def _joined(listed: list[object]) -> str:
    texts: list[str] = []
    length = 0
    for one in listed:
        message = as_object(one)
        text = str(one) if message is None else f"{message.get('role')}\n{message.get('content')}"
        texts.append(text)
        length += len(text) + 1
        if length >= _PREFIX:
            break
    return "\n".join(texts)


def _all_fields(body: bytes) -> Object:
    try:
        fields = as_object(loads(body))
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if fields is None:
        raise Refusal(400, "the body must be a JSON object")
    return fields


async def _small_fields(body: bytes) -> Object:
    """Of a long body what is short, and the beginning of its prompt."""
    try:
        found = await _read_spans(body, await spans(body))
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    return found


async def _read_spans(body: bytes, places: Mapping[str, Span]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, (start, end) in places.items():
        if name in _SMALL_NAMES and end - start <= SMALL:
            found[name] = loads(body[start:end])
        elif name in _COUNT_NAMES or name == "stream":
            raise Refusal(400, f"{name} is too long")
        elif name in _REFUSED_NAMES:
            found[name] = body[start : min(end, start + 5)] != b"null" or None
        elif name in _PROMPT_NAMES:
            found[name] = await _beginning(body, start, end)
    return found


async def _beginning(body: bytes, start: int, end: int) -> object:
    if body[start : start + 1] == b'"':
        return _start_of_text(body[start : min(end, start + SMALL + 1)])
    if body[start : start + 1] != b"[":
        return None
    raw = body[start:end]
    whole: list[bytes] = []
    last: list[object] = []
    for one in await elements(raw, 2 * _PREFIX):
        if len(one) > SMALL:
            last = [_start_of_text(one)] if one[:1] == b'"' else []
            break
        whole.append(one)
    # Read in one go: there can be thousands of tokens.
    return [*(as_list(loads(b"[%b]" % b",".join(whole))) or ()), *last]


def _start_of_text(raw: bytes) -> str:
    """Cut where a character may end: not inside an escape, a surrogate pair or UTF-8."""
    if len(raw) <= SMALL:
        return str(loads(raw))
    start = raw[1:SMALL]
    cut = max(start.rfind(b" "), start.rfind(b"\\n"))
    text = start[: cut if cut > 0 else 0].rstrip(b"\\")
    try:
        return str(loads(b'"' + text + b'"'))
    except ValueError:
        return text.decode("utf-8", "replace")


def _max_tokens(fields: Object) -> int:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        count = as_int(fields.get(name))
        if count is not None and count > 0:
            return count
    return _DEFAULT_MAX_TOKENS


def _header_number(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    text = fields.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise Refusal(400, f"{name.decode()} must be a whole number")
    return int(text)
