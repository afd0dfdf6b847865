"""What an HTTP answer means for the row that asked: a result, try again, wait, or an error row."""

from __future__ import annotations

import enum
from typing import NamedTuple, cast

from vllmdeploy.batch.records import CHAT, COMPLETIONS
from vllmdeploy.batch.strictjson import NotStrictJson, dump, load, load_object

_EXCERPT = 300
_REFUSING = (429, 503, 529)
_TRY_AGAIN = (408, 409, 425)


class Reply(NamedTuple):
    """What counts of an HTTP answer; `retry_after` is that header's text."""

    status: int
    retry_after: str
    body: bytes


class Usage(NamedTuple):
    prompt_tokens: int = 0
    completion_tokens: int = 0


NO_USAGE = Usage()


class Verdict(enum.Enum):
    GOOD = "good"
    AGAIN = "again"  # counts as an attempt
    BUSY = "busy"  # the instance wants less; does not count
    REJECTED = "rejected"  # the row is at fault: an error row at once
    STOP = "stop"  # every row would fail alike: the run ends and can be resumed


class Answer(NamedTuple):
    """`body` is one line of JSON; `message` says what was wrong."""

    verdict: Verdict
    status: int = 0
    body: bytes = b"null"
    value: object = None
    usage: Usage = NO_USAGE
    kind: str = "ok"
    message: str = ""
    retry_after: float | None = None


def judge(path: str, reply: Reply) -> Answer:
    status = reply.status
    if status == 200:
        return _judge_success(path, reply.body)
    message = f"HTTP {status}: {error_message(reply.body)}"
    body = _one_line(reply.body)
    if status in _REFUSING:
        wait = _seconds(reply.retry_after)
        return Answer(Verdict.BUSY, status, body, kind="busy", message=message, retry_after=wait)
    if status == 401:
        return Answer(Verdict.STOP, status, body, kind="unauthorized", message=message)
    again = status >= 500 or status in _TRY_AGAIN
    verdict = Verdict.AGAIN if again else Verdict.REJECTED
    return Answer(verdict, status, body, kind=f"http_{status}", message=message)


def _judge_success(path: str, raw: bytes) -> Answer:
    try:
        value = load_object(raw)
    except NotStrictJson as error:
        return _nonsense(f"HTTP 200 without JSON: {error}", raw)
    problem = _wrong_shape(path, value)
    if problem:
        return _nonsense(f"HTTP 200, but {problem}", raw)
    return Answer(Verdict.GOOD, 200, _compact(raw, value), value, _usage(value))


def _nonsense(message: str, raw: bytes) -> Answer:
    return Answer(Verdict.AGAIN, 200, _one_line(raw), kind="nonsense", message=message)


def _compact(raw: bytes, value: object) -> bytes:
    """The instance's own bytes, unless they are spread over lines."""
    return dump(value) if b"\n" in raw or b"\r" in raw else raw.strip()


def _one_line(raw: bytes) -> bytes:
    try:
        return _compact(raw, load(raw))
    except NotStrictJson:
        return dump(raw[:_EXCERPT].decode(errors="replace"))


def _wrong_shape(path: str, value: dict[str, object]) -> str:
    if value.get("error"):
        return f"it holds an error: {error_message(dump(value))}"
    if not isinstance(value.get("id", ""), str):
        return "its id is not a string"
    if path in (CHAT, COMPLETIONS):
        return _wrong_choices(path, value.get("choices"))
    wanted = {"/v1/responses": "output", "/v1/embeddings": "data"}.get(path)
    if wanted is None:
        wanted = "data" if path.endswith("/score") else "results"
    found = value.get(wanted)
    return "" if isinstance(found, list) and found else f"{wanted} is not a list with something in"


def _wrong_choices(path: str, choices: object) -> str:
    if not isinstance(choices, list) or not choices:
        return "choices is empty"
    for choice in cast("list[object]", choices):
        if not isinstance(choice, dict):
            return "a choice is not an object"
        fields = cast("dict[str, object]", choice)
        if path == COMPLETIONS:
            if not isinstance(fields.get("text"), str):
                return "a choice has no text"
        elif _wrong_message(fields.get("message")):
            return "a choice has no message with content"
    return ""


def _wrong_message(message: object) -> bool:
    if not isinstance(message, dict):
        return True
    fields = cast("dict[str, object]", message)
    others = ("tool_calls", "reasoning", "reasoning_content", "refusal", "audio", "function_call")
    return not isinstance(fields.get("content"), str) and not any(fields.get(key) for key in others)


def _usage(value: dict[str, object]) -> Usage:
    usage = value.get("usage")
    if not isinstance(usage, dict):
        return NO_USAGE
    counts = cast("dict[str, object]", usage)
    return Usage(
        _count(counts.get("prompt_tokens", counts.get("input_tokens"))),
        _count(counts.get("completion_tokens", counts.get("output_tokens"))),
    )


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 10**12 else 0


def answer_text(value: object) -> str | None:
    """The text of the first choice, None where there is none."""
    try:
        choice = cast("dict[str, list[dict[str, object]]]", value)["choices"][0]
        text = choice.get("text")
        if text is None:
            text = cast("dict[str, object]", choice["message"])["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def error_message(raw: bytes) -> str:
    """What the instance said, out of any of the shapes that errors come in."""
    try:
        found: object = load(raw)
    except NotStrictJson:
        return raw[:_EXCERPT].decode(errors="replace").strip() or "(empty answer)"
    for key in ("error", "message"):
        if isinstance(found, dict):
            found = cast("dict[str, object]", found).get(key, cast("object", found))
    text = found if isinstance(found, str) else dump(found).decode()
    return text[:_EXCERPT]


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else None
