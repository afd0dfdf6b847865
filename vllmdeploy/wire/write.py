"""Heads, written out."""

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
    block: bytes = b"",
) -> bytes:
    """`block` are fields that are written already, each with the end of its line."""
    start = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n".encode()
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    if chunked:
        size = b"transfer-encoding: chunked\r\n"
    else:
        size = b"" if length is None else b"content-length: %d\r\n" % length
    return b"".join((start, block, written(fields) if fields else b"", size, end))


def request_head(method: str, target: str, host: str, fields: Iterable[Field]) -> bytes:
    """`fields` must hold the length, if there is a body."""
    start = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("ascii")
    return b"%b%b\r\n" % (start, written(fields))


def written(fields: Iterable[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
