"""Heads of HTTP/1.1 messages, read by one strict grammar for requests and answers.

There is one parser, not a fast and a slow one: where two disagree, requests are smuggled.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vllmdeploy.wire.faults import Malformed, NotHttp
from vllmdeploy.wire.limits import HEAD_LIMITS, HeadLimits

Field = tuple[bytes, bytes]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELDS = rb"((?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
# Origin form only. What a proxy and a server could read differently (fragment, backslash,
# quotes, control and non-ASCII bytes) is left out.
_TARGET = rb"(/[!$%&'()*+,\-./0-9:;=@A-Z_a-z~]*)(?:\?([!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]*))?"
_REQUEST = re.compile(rb"([A-Z]{1,20}) " + _TARGET + rb" HTTP/1\.([01])\r\n" + _FIELDS)
_ANSWER = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n" + _FIELDS)
LENGTH_DIGITS = 18
_HOST = re.compile(rb"(?:[0-9A-Za-z._\-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{1,5})?")
_BARE_LF = re.compile(rb"(?<!\r)\n")

# Twice in one request, each reader picks its own: refuse rather than guess.
_ONCE = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key"),
        *(b"content-type", b"expect"),
    )
)
# What concerns one connection only, the length, which is written anew, and what an engine must not
# say in our name.
NOT_PASSED_ON = frozenset(
    (
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"content-length"),
        *(b"x-request-id", b"location", b"set-cookie"),
    )
)
CHUNKED = -1
UNTIL_CLOSE = -2


class RequestHead(NamedTuple):
    """`length` is the body's, or CHUNKED, and not among the fields, whose names are lower case."""

    method: str
    path: str
    query: str
    fields: dict[bytes, bytes]
    length: int
    keep_alive: bool
    minor: int

    def of_length(self, length: int) -> RequestHead:
        """What differs from this one in the length it gives alone; it has the very same fields."""
        method, path, query, fields, _, keep_alive, minor = self
        return RequestHead(method, path, query, fields, length, keep_alive, minor)

    def text(self, name: bytes) -> str:
        return self.fields.get(name, b"").decode("latin-1")


class AnswerHead(NamedTuple):
    """`block` are the fields to pass on, as they came, each with the end of its line; `length` is
    the body's, or CHUNKED, or UNTIL_CLOSE; `events` that it is a stream of events."""

    status: int
    block: bytes
    length: int
    keep_alive: bool
    events: bool = False

    def of_length(self, length: int) -> AnswerHead:
        """What differs from this one in the length it gives alone."""
        status, block, _, keep_alive, events = self
        if _has_no_body(status):
            return self
        return AnswerHead(status, block, length, keep_alive, events)

    @property
    def lines(self) -> tuple[bytes, ...]:
        return tuple(self.block.split(b"\r\n")[:-1])

    def text(self, name: bytes) -> str:
        for line in self.lines:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip(b" \t").decode("latin-1")
        return ""


def end_of_head(data: bytes, known: int = 0, limits: HeadLimits = HEAD_LIMITS) -> int:
    """Where the body begins, or -1 while more must come; `known` bytes were searched before."""
    start = max(0, known - 3)
    at = data.find(b"\r\n\r\n", start, limits.size)
    if at >= 0:
        return at + 4
    if len(data) >= limits.size:
        raise Malformed(f"the head is longer than {limits.size} bytes", 431)
    # A head that ends in bare line feeds would otherwise be waited for until the time is up.
    if _BARE_LF.search(data, start):
        raise Malformed("a line ends in a bare line feed")
    return -1


def parse_request(data: bytes, end: int, limits: HeadLimits = HEAD_LIMITS) -> RequestHead:
    match = _REQUEST.fullmatch(data, 0, end)
    if match is None:
        raise Malformed(_why_not(data[:end]))
    method, path, query, minor, block = match.groups(b"")
    fields = _read_fields(block, limits)
    by_name = dict(fields)
    if len(by_name) != len(fields):
        by_name = _merge(fields)
    version = minor == b"1"
    host = by_name.get(b"host")
    if host is None:
        if version:
            raise Malformed("no Host")
    elif not _HOST.fullmatch(host):
        raise Malformed("Host is not a host and a port")
    connection = by_name.get(b"connection")
    return RequestHead(
        method.decode("ascii"),
        path.decode("ascii"),
        query.decode("ascii") if query else "",
        by_name,
        _request_length(by_name, chunks=version),
        version and (connection is None or b"close" not in connection.lower()),
        int(version),
    )


def parse_answer(data: bytes, end: int, limits: HeadLimits = HEAD_LIMITS) -> AnswerHead:
    match = _ANSWER.fullmatch(data, 0, end)
    if match is None:
        raise NotHttp(_why_not(data[:end]))
    minor, code, block = match.groups()
    kept: list[bytes] = []
    own: list[Field] = []
    events = False
    lines = block[:-2].split(b"\r\n") if block else []
    if len(lines) > limits.fields:
        raise NotHttp(f"more than {limits.fields} header fields")
    for line in lines:
        name = line[: line.index(b":")].lower()
        if name in NOT_PASSED_ON:
            own.append((name, line[len(name) + 1 :].strip(b" \t").lower()))
            continue
        kept.append(line)
        if name == b"content-type":
            value = line[len(name) + 1 :].strip(b" \t").lower()
            events = events or value.startswith(b"text/event-stream")
    lengths = [value for name, value in own if name == b"content-length"]
    codings = [value for name, value in own if name == b"transfer-encoding"]
    named = b",".join([value for name, value in own if name == b"connection"])
    status = int(code)
    length = 0 if _has_no_body(status) else _answer_length(lengths, codings)
    keep = (b"close" not in named) if minor == b"1" else b"keep-alive" in named
    if named and named not in (b"keep-alive", b"close"):
        names = {name.strip() for name in named.split(b",")}
        kept = [line for line in kept if line[: line.index(b":")].lower() not in names]
    passed_on = b"\r\n".join((*kept, b"")) if kept else b""
    return AnswerHead(status, passed_on, length, keep and length != UNTIL_CLOSE, events)


def _read_fields(block: bytes, limits: HeadLimits) -> list[Field]:
    if not block:
        return []
    lines = block[:-2].split(b"\r\n")
    if len(lines) > limits.fields:
        raise Malformed(f"more than {limits.fields} header fields", 431)
    pairs = [line.split(b":", 1) for line in lines]
    return [(name.lower(), value.strip(b" \t")) for name, value in pairs]


def _merge(fields: list[Field]) -> dict[bytes, bytes]:
    merged: dict[bytes, bytes] = {}
    for name, value in fields:
        if name not in merged:
            merged[name] = value
        elif name in _ONCE:
            raise Malformed(f"{name.decode('ascii')} is given twice")
        else:
            merged[name] += b", " + value
    return merged


def _has_no_body(status: int) -> bool:
    """Whatever length it gives."""
    return status < 200 or status in (204, 304)


def _request_length(fields: dict[bytes, bytes], *, chunks: bool) -> int:
    coding = fields.get(b"transfer-encoding")
    length = fields.pop(b"content-length", None)
    if coding is not None:
        if length is not None:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if not chunks or coding.lower() != b"chunked":
            raise Malformed("Transfer-Encoding is not chunked")
        return CHUNKED
    if length is None:
        return 0
    if not _is_length(length):
        raise Malformed("Content-Length is not a number")
    return int(length)


def _answer_length(lengths: list[bytes], codings: list[bytes]) -> int:
    if codings:
        if lengths or len(codings) > 1 or codings[0] != b"chunked":
            raise NotHttp("an answer's length is given in two ways")
        return CHUNKED
    if not lengths:
        return UNTIL_CLOSE
    if len(lengths) > 1 or not _is_length(lengths[0]):
        raise NotHttp("Content-Length is not one number")
    return int(lengths[0])


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= LENGTH_DIGITS


def _why_not(head: bytes) -> str:
    """Only reached on a head already refused, so this may be slow and need not be complete."""
    lines = head.split(b"\r\n")
    if b"\x00" in head:
        return "a NUL byte in the head"
    if any(b"\n" in line or b"\r" in line for line in lines):
        return "a line ends in a bare carriage return or line feed"
    if any(line[:1] in (b" ", b"\t") for line in lines[1:]):
        return "a header field is folded over lines"
    if any(b" :" in line.partition(b":")[0] + b":" for line in lines[1:]):
        return "white space before a colon"
    for line in lines[1:-2]:
        if not re.fullmatch(_TOKEN + rb":[\t\x20-\x7e\x80-\xff]*", line):
            return "a header field is not NAME: VALUE"
    return "the first line is not HTTP/1.1"
