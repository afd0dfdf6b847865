"""What can go wrong on a connection, split by whether the other side can have acted on it.

WireError
├── Malformed .......... a client sent what is not HTTP/1.1; carries the status to answer
├── OutOfSockets ....... our own limit of open files, which says nothing of the upstream
└── UpstreamError
    ├── NeverSent ...... no connection, so nothing reached the upstream
    ├── NoAnswer ....... sent, and the connection ended before the first byte of an answer
    ├── CutShort ....... the answer began and did not end
    ├── NotHttp ........ the answer is not HTTP/1.1
    ├── TimedOut ....... sent, and then silence for longer than allowed
    └── Abandoned ...... given up by us, because the upstream was found to be hung
"""

from __future__ import annotations


class WireError(Exception):
    pass


class Malformed(WireError):
    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class OutOfSockets(WireError):
    pass


class UpstreamError(WireError):
    pass


class NeverSent(UpstreamError):
    """`refused` tells a closed port, which is certain, from a silence, which is not."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class NoAnswer(UpstreamError):
    pass


class CutShort(UpstreamError):
    pass


class NotHttp(UpstreamError):
    pass


class TimedOut(UpstreamError):
    """`begun`: the answer had begun, so nobody may ask again."""

    def __init__(self, reason: str, *, begun: bool) -> None:
        super().__init__(reason)
        self.begun = begun


class Abandoned(UpstreamError):
    pass
