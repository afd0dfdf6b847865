"""Lines of the output files: OpenAI Batch form, with what a resumed run must know at the front."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from vllmdeploy.batch.strictjson import dump

OK = "ok"
# Only this fixed head is read again on resume, so a million rows need no JSON parser.
_HEAD = re.compile(
    rb'\{"line":(\d{1,15}),"run":\{"at":(\d{1,12}\.\d{3}),"seconds":(\d{1,9}\.\d{4}),'
    rb'"attempts":(\d{1,9}),"prompt_tokens":(\d{1,12}),"completion_tokens":(\d{1,12}),'
    rb'"kind":"([a-z0-9_]{1,40})","instance":"([^"\\]{0,300})"\},.*\}\Z'
)


class Head(NamedTuple):
    """How one row went. `at` is the wall clock; `seconds` those of the attempt that counted."""

    line: int
    at: float
    seconds: float
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    kind: str
    instance: str


class Response(NamedTuple):
    """`body` is one JSON value on one line, as the instance sent it."""

    status: int
    request_id: str
    body: bytes


class Entry(NamedTuple):
    """`extra` holds further members, already JSON: the parsed answer, the input's own object."""

    head: Head
    custom_id: str | None
    response: Response | None
    message: str = ""
    extra: tuple[tuple[str, bytes], ...] = ()


def format_entry(entry: Entry) -> bytes:
    """One whole line, its newline included."""
    head, response = entry.head, entry.response
    parts = [
        f'{{"line":{head.line},"run":{{"at":{head.at:.3f},"seconds":{head.seconds:.4f},'
        f'"attempts":{head.attempts},"prompt_tokens":{head.prompt_tokens},'
        f'"completion_tokens":{head.completion_tokens},"kind":"{head.kind}",'
        f'"instance":"{head.instance}"}},"id":"line-{head.line}",'
        f'"custom_id":{json.dumps(entry.custom_id)},"response":'.encode()
    ]
    if response is None:
        parts.append(b"null")
    else:
        request_id = json.dumps(response.request_id)
        parts.append(
            f'{{"status_code":{response.status},"request_id":{request_id},"body":'.encode()
        )
        parts += (response.body, b"}")
    if head.kind == OK:
        parts.append(b',"error":null')
    else:
        parts += (b',"error":', dump({"code": head.kind, "message": entry.message}))
    for name, value in entry.extra:
        parts += (b',"', name.encode(), b'":', value)
    parts.append(b"}\n")
    return b"".join(parts)


def read_head(line: bytes) -> Head | None:
    """None where the line, given without its newline, is not one that `format_entry` made whole.

    After a power cut a file system may leave zeros where the last rows should be.
    """
    match = _HEAD.match(line)
    if match is None or b"\0" in line:
        return None
    number, at, seconds, attempts, prompt, completion, kind, instance = match.groups()
    return Head(
        int(number),
        float(at),
        float(seconds),
        int(attempts),
        int(prompt),
        int(completion),
        kind.decode(),
        instance.decode(errors="replace"),
    )
