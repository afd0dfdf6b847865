"""Heads and chunks, written out."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from vllmdeploy.wire.head import Field

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def answer_head(
    status: int,
    fields: Iterable[Field],
    *,
    length: int | None,
    chunked: bool,
    close: bool,
    lines: tuple[bytes, ...] = (),
) -> bytes:
    """`lines` are fields that are written already."""
    parts = [_STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()]
    if lines:
        parts.append(b"\r\n".join(lines))
        parts.append(b"\r\n")
    for name, value in fields:
        parts.append(b"%b: %b\r\n" % (name, value))
    if chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    elif length is not None:
        parts.append(b"content-length: %d\r\n" % length)
    parts.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(parts)


def request_head(method: str, target: str, host: str, fields: Iterable[Field]) -> bytes:
    """`fields` must hold the length, if there is a body."""
    start = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("ascii")
    return b"".join([start, *[b"%b: %b\r\n" % field for field in fields], b"\r\n"])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
