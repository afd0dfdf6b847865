"""Messages out of a stream of bytes, without a socket: head, body, and on to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from vllmdeploy.wire.body import Decoder, decoder
from vllmdeploy.wire.head import AnswerHead, RequestHead, end_of_head
from vllmdeploy.wire.known import Head, Known, remember


class MessageReader:
    """Ask for `head()` until it is there, then for `body()` until `complete`, then `renew()`."""

    __slots__ = (
        "_begun",
        "_data",
        "_decoder",
        "_known",
        "_left",
        "_searched",
        "complete",
    )

    def __init__(self) -> None:
        self._data: bytes = b""
        self._searched = 0
        self._known: Known[RequestHead] | Known[AnswerHead] | None = None
        self._decoder: Decoder | None = None
        self._left = 0
        self._begun = False
        self.complete = False

    @property
    def waiting(self) -> int:
        """Bytes that came and were not yet asked for."""
        return len(self._data)

    @property
    def untouched(self) -> bool:
        return not self._data and not self._begun

    def feed(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data

    def skip_empty_line(self) -> None:
        """One empty line before a request is allowed (RFC 9112, 2.2); more is not ours to skip."""
        if self._data.startswith(b"\r\n"):
            self._data = self._data[2:]

    def head(self, parse: Callable[[bytes, int], Head]) -> Head | None:
        """`parse` must be the same each time: who keeps a connection mostly sends the same head
        again, but for its length, and that need not be read anew."""
        data = self._data
        known = cast("Known[Head] | None", self._known)
        end = known.end_in(data) if known is not None else -1
        if known is not None and end > 0:
            head = known.head
        else:
            end = end_of_head(data, self._searched)
            if end < 0:
                self._searched = len(data)
                return None
            head = parse(data, end)
            self._known = cast("Known[RequestHead] | None", remember(data[:end], head))
        self._data = data[end:]
        self._searched = 0
        self._begun = True
        self._left = head.length
        self._decoder = decoder(head.length) if head.length < 0 else None
        self.complete = not head.length
        return head

    def more(self, data: bytes) -> bytes:
        """`feed`, and then `body`."""
        decoder = self._decoder
        if decoder is None or self._data:
            self.feed(data)
            return self.body()
        payload = decoder.decode(data)
        if decoder.done:
            self._data = decoder.rest
            self.complete = True
        return payload

    def body(self) -> bytes:
        if not self._begun:
            raise RuntimeError("the body was asked for before the head")
        data = self._data
        if self.complete or not data:
            return b""
        if self._decoder is None:
            return self._counted(data)
        payload = self._decoder.decode(data)
        self._data = self._decoder.rest
        self.complete = self._decoder.done
        return payload

    def renew(self) -> None:
        self._begun = False
        self.complete = False

    def _counted(self, data: bytes) -> bytes:
        left = self._left - len(data)
        if left > 0:
            self._left = left
            self._data = b""
            return data
        self.complete = True
        if not left:
            self._data = b""
            return data
        payload, self._data = data[: self._left], data[self._left :]
        return payload
