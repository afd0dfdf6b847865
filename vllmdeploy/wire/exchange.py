"""One request and the answer to it, as an application sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from vllmdeploy.wire.chunks import chunk
from vllmdeploy.wire.head import Field, RequestHead
from vllmdeploy.wire.write import LAST_CHUNK, answer_head


class Wire(Protocol):
    """What an exchange needs of its connection."""

    def send(self, data: bytes) -> None: ...
    def keeps(self) -> bool: ...
    def finished(self) -> None: ...
    def abort(self) -> None: ...


class Exchange:
    """Answer with `respond`, or with `start`, `write`... and `finish`.

    A client that leaves is told by cancelling the handler; writes after that go nowhere.
    `flow` is called with True when the client reads slower than we write, with False when it has
    caught up. `notes` are kept for later requests on the same connection.
    """

    _chunked = False
    _keep = True
    body = b""
    started = False
    done = False
    paused = False
    status = 0
    sent = 0
    flow: Callable[[bool], None] | None = None
    trust: Callable[[], None] | None = None

    def __init__(
        self,
        wire: Wire,
        head: RequestHead,
        peer: str,
        received_at: float,
        notes: dict[str, object] | None = None,
    ) -> None:
        self._wire = wire
        self.notes = {} if notes is None else notes
        self._silent = head.method == "HEAD"
        self.head = head
        self.peer = peer
        self.received_at = received_at

    def respond(
        self, status: int, fields: Iterable[Field], body: bytes, *, block: bytes = b""
    ) -> None:
        """`block` are further fields as they came from elsewhere, written already."""
        if self.started:
            raise RuntimeError("an answer was already begun")
        self.started = True
        self.status = status
        self._keep = self._wire.keeps()
        head = answer_head(
            status, fields, length=len(body), chunked=False, close=not self._keep, block=block
        )
        self.sent = len(body)
        self._wire.send(head if self._silent else head + body)
        if not self.done:
            self.done = True
            self._wire.finished()

    def start(
        self,
        status: int,
        fields: Iterable[Field],
        length: int | None,
        *,
        block: bytes = b"",
    ) -> None:
        """Without a length, HTTP/1.1 clients get chunks and older ones read until the close."""
        if self.started:
            raise RuntimeError("an answer was already begun")
        self.started = True
        self.status = status
        self._chunked = length is None and self.head.minor == 1
        self._keep = self._wire.keeps() and (length is not None or self._chunked)
        head = answer_head(
            status,
            fields,
            length=length,
            chunked=self._chunked,
            close=not self._keep,
            block=block,
        )
        self._wire.send(head)

    def write(self, data: bytes) -> None:
        if data and not self.done and not self._silent:
            self.sent += len(data)
            self._wire.send(chunk(data) if self._chunked else data)

    def finish(self) -> None:
        if self._chunked and not self._silent:
            self._wire.send(LAST_CHUNK)
        self._end()

    def abort(self) -> None:
        """Ends an answer that cannot be completed, so that the client sees that it is not whole."""
        self.done = True
        self._wire.abort()

    @property
    def keep(self) -> bool:
        return self._keep

    def _end(self) -> None:
        if not self.done:
            self.done = True
            self._wire.finished()
