"""Short questions over TCP and HTTP; an answer that does not come is a result, not an error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_ANSWER_LIMIT = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """Status 0: none came, and `detail` says why."""

    status: int
    body: str = ""
    detail: str = ""


async def tcp_problem(host: str, port: int, *, limit_s: float) -> str:
    """Why a connection is not accepted; empty when it is."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), limit_s)
    except asyncio.TimeoutError:
        return f"no answer within {limit_s:g} s"
    except OSError as error:
        return _words(error)
    writer.close()
    return ""


async def ask(
    url: str, *, limit_s: float, body: str = "", headers: Mapping[str, str] | None = None
) -> Answer:
    """GET, or POST when there is a body."""
    try:
        return await asyncio.wait_for(_exchange(url, body, headers or {}), limit_s)
    except asyncio.TimeoutError:
        return Answer(0, detail=f"no answer within {limit_s:g} s")
    except OSError as error:
        return Answer(0, detail=_words(error))
    except (ValueError, asyncio.IncompleteReadError) as error:
        return Answer(0, detail=f"not an HTTP answer: {error}")


async def _exchange(url: str, body: str, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname or "", parts.port or 80)
    try:
        writer.write(_request(url, body, headers))
        await writer.drain()
        raw = await _read_all(reader)
    finally:
        writer.close()
    head, _, payload = raw.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].split(b" ")
    if len(status) < 2 or not status[0].startswith(b"HTTP/1."):
        raise ValueError(head[:80].decode("latin-1") or "empty")
    if b"transfer-encoding: chunked" in head.lower():
        payload = _unchunked(payload)
    return Answer(int(status[1]), payload.decode("utf-8", "replace"))


def _request(url: str, body: str, headers: Mapping[str, str]) -> bytes:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    data = body.encode()
    lines = [
        f"{'POST' if body else 'GET'} {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + data


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    """Until the end, as `Connection: close` promises."""
    parts: list[bytes] = []
    size = 0
    while data := await reader.read(65_536):
        parts.append(data)
        size += len(data)
        if size > _ANSWER_LIMIT:
            raise ValueError(f"longer than {_ANSWER_LIMIT} bytes")
    return b"".join(parts)


def _unchunked(payload: bytes) -> bytes:
    parts: list[bytes] = []
    while payload:
        size, _, payload = payload.partition(b"\r\n")
        count = int(size.split(b";")[0], 16)
        if count == 0:
            break
        parts.append(payload[:count])
        payload = payload[count + 2 :]
    return b"".join(parts)


def _words(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or str(error)
