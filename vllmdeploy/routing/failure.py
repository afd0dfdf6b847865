"""Everything that can go wrong with one request to one upstream, and what each kind says."""

from __future__ import annotations

from enum import Enum


class Failure(Enum):
    """The value is how it reads in logs, metrics and reasons."""

    REFUSED = "connection refused"
    CONNECT_TIMEOUT = "connect timed out"
    UNRESOLVED = "name not resolved"
    STALE = "idle connection was closed by the other side"
    BUSY = "engine queue is full"
    RESET = "connection lost before an answer"
    CUT = "connection lost in the answer"
    GARBAGE = "answer is not HTTP"
    SERVER_ERROR = "server error"
    FIRST_BYTE_TIMEOUT = "no first byte in time"
    IDLE_TIMEOUT = "no next byte in time"
    STREAM_ERROR = "stream ended with an error"
    HUNG = "instance was found hung while the request waited"
    CLIENT_ERROR = "request refused by the engine"
    CLIENT_GONE = "client left"


NEVER_PROCESSED = frozenset(
    {Failure.REFUSED, Failure.CONNECT_TIMEOUT, Failure.UNRESOLVED, Failure.STALE, Failure.BUSY}
)
"""The engine cannot have begun: to repeat the request elsewhere is always safe."""

NO_FAULT = frozenset({Failure.STALE, Failure.BUSY, Failure.CLIENT_ERROR, Failure.CLIENT_GONE})
"""Says nothing against the instance. A full queue is an answer, and ejecting for it would hand
its load to the next instance, which would then be full too."""

PORT_CLOSED = frozenset({Failure.REFUSED, Failure.UNRESOLVED})
"""Nobody is there: no second observation is needed."""

CONNECTION_LOST = frozenset({Failure.RESET, Failure.CUT})
"""One death of an instance loses every request it held: together they are one fault."""

MAY_BE_POISON = frozenset({Failure.RESET, Failure.CUT, Failure.HUNG, Failure.FIRST_BYTE_TIMEOUT})
"""The instance may have died of this very request."""


def failure_of_status(status: int) -> Failure | None:
    """None is success. vLLM answers inference with 503 only when its queue is full; a dead engine
    answers 500."""
    if status == 503:
        return Failure.BUSY
    if status >= 500:
        return Failure.SERVER_ERROR
    if status >= 400:
        return Failure.CLIENT_ERROR
    return None
