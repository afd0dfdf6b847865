"""One request to be answered by one of a group's instances, and the answer it got."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from vllmdeploy.gateway.fleet import Group
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.routing.failure import Failure
from vllmdeploy.routing.upstream import ANY_REQUEST, Request
from vllmdeploy.wire.client import UpstreamConnection
from vllmdeploy.wire.faults import (
    Abandoned,
    CutShort,
    NeverSent,
    NoAnswer,
    TimedOut,
    UpstreamError,
)
from vllmdeploy.wire.head import AnswerHead, Field
from vllmdeploy.wire.write import written

_COPIED_MAX = 64 * 1024


class Share:
    """How many calls of one batch each instance has, and which have their fill."""

    __slots__ = ("_counts", "_size", "full")

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: dict[str, int] = {}
        self.full: set[str] = set()

    def add(self, instance: str, count: int) -> None:
        total = self._counts.get(instance, 0) + count
        self._counts[instance] = total
        if total >= self._size:
            self.full.add(instance)
        else:
            self.full.discard(instance)


@dataclass(slots=True, eq=False)
class Call:
    """`share`: instances that have their fill of a batch are left to others while any is free.

    `wish` works out what routing and the queue may know of the request, once, if they ask.
    """

    group: Group
    path: str
    body: bytes
    fields: tuple[Field, ...]
    wish: Callable[[], Request] | None = None
    replayable: bool = True
    share: Share | None = None
    at: str = ""
    tries: int = 0
    queued_s: float = 0.0

    def go_to(self, instance: str) -> None:
        if self.share is not None:
            if self.at:
                self.share.add(self.at, -1)
            if instance:
                self.share.add(instance, 1)
        self.at = instance

    def request(self) -> Request:
        return self.wish() if self.wish is not None else ANY_REQUEST

    def message(self, instance: Instance) -> tuple[bytes, ...]:
        """In one piece, unless that would copy a long body."""
        start = _start(instance.upstream.address.prefix + self.path, instance.host, self.fields)
        own = written(instance.authorization) if instance.authorization else b""
        size = len(self.body)
        if size > _COPIED_MAX:
            return b"%b%bcontent-length: %d\r\n\r\n" % (start, own, size), self.body
        return (b"%b%bcontent-length: %d\r\n\r\n%b" % (start, own, size, self.body),)


@lru_cache(maxsize=1024)
def _start(target: str, host: str, fields: tuple[Field, ...]) -> bytes:
    """Hardly ever another than one of a few; those of a hostile client push each other out."""
    return f"POST {target} HTTP/1.1\r\nhost: {host}\r\n".encode("ascii") + written(fields)


@dataclass(slots=True, eq=False)
class Answer:
    """Somebody's answer; whoever holds it must settle it, once, with the dispatcher."""

    instance: Instance
    connection: UpstreamConnection
    head: AnswerHead
    began: float
    failure: Failure | None = None


def failure_of(error: UpstreamError) -> Failure:
    match error:
        case NeverSent():
            return Failure.REFUSED if error.refused else Failure.CONNECT_TIMEOUT
        case NoAnswer():
            return Failure.RESET
        case CutShort():
            return Failure.CUT
        case TimedOut():
            return Failure.IDLE_TIMEOUT if error.begun else Failure.FIRST_BYTE_TIMEOUT
        case Abandoned():
            return Failure.HUNG
        case _:
            return Failure.GARBAGE
