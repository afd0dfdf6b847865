"""One call, as a client hands it to its fleet, and how the wire's failures are named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.failure import Failure
from vllmdeploy.routing.retry import replayable
from vllmdeploy.routing.upstream import Request, affinity_of
from vllmdeploy.wire.faults import Abandoned, CutShort, NeverSent, NoAnswer, TimedOut, UpstreamError

_AFFINITY_CHARACTERS = 1 << 15
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})


@dataclass(frozen=True, slots=True)
class Call:
    path: str
    body: bytes
    model: str
    request: Request
    stream: bool = False
    method: str = "POST"
    replayable: bool = True
    headers: tuple[tuple[bytes, bytes], ...] = ()


def call_of(
    path: str,
    fields: Mapping[str, Any],
    *,
    session: str = "",
    priority: int = 0,
    deadline: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Call:
    prompt = _beginning(fields)
    limit = fields.get("max_tokens") or fields.get("max_completion_tokens")
    return Call(
        path=path,
        body=json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        ),
        model=str(fields.get("model") or ""),
        request=Request(
            affinity=affinity_of(prompt, session or str(fields.get("user") or "")),
            priority=priority,
            deadline=deadline,
            prompt_tokens=len(prompt) // 4,
            max_tokens=limit if isinstance(limit, int) else 256,
        ),
        stream=fields.get("stream") is True,
        replayable=replayable("POST", path),
        headers=_header_lines(headers or {}),
    )


def _beginning(fields: Mapping[str, Any]) -> str:
    """As much of the prompt as affinity looks at; images and the like have no part in it."""
    prompt = fields.get("prompt", fields.get("input"))
    if isinstance(prompt, str):
        return prompt[:_AFFINITY_CHARACTERS]
    parts: list[str] = []
    size = 0
    for message in cast("Iterable[object]", fields.get("messages") or ()):
        if size >= _AFFINITY_CHARACTERS:
            break
        if isinstance(message, Mapping):
            said = cast("Mapping[str, object]", message)
            part = f"{said.get('role')}\n{said.get('content')}\n"[:_AFFINITY_CHARACTERS]
            parts.append(part)
            size += len(part)
    return "".join(parts)


def _header_lines(headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
            raise UsageError(f"header {name!r}: neither its name nor its value may hold such signs")
        if name.lower() in _OWN_HEADERS:
            raise UsageError(f"header {name!r} is the client's own")
    return tuple((k.lower().encode(), v.encode("latin-1")) for k, v in headers.items())


def failure_of(error: UpstreamError) -> Failure:
    if isinstance(error, NeverSent):
        return Failure.REFUSED if error.refused else Failure.CONNECT_TIMEOUT
    if isinstance(error, TimedOut):
        return Failure.IDLE_TIMEOUT if error.begun else Failure.FIRST_BYTE_TIMEOUT
    if isinstance(error, Abandoned):
        return Failure.HUNG
    if isinstance(error, NoAnswer):
        return Failure.RESET
    return Failure.CUT if isinstance(error, CutShort) else Failure.GARBAGE
