"""What a batch needs of HTTP, and how a call can fail before there is an answer to judge."""

from __future__ import annotations

from typing import Protocol

from vllmdeploy.batch.answers import Reply
from vllmdeploy.routing.upstream import Address


class CallFailed(Exception):
    """No whole answer came. `sent` is False where the instance cannot have seen the request."""

    def __init__(self, message: str, *, sent: bool, timed_out: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.sent = sent
        self.timed_out = timed_out


class Transport(Protocol):
    """Raises CallFailed and nothing else; follows no redirects; one call, one request."""

    async def post(self, to: Address, path: str, body: bytes) -> Reply: ...

    async def get(self, to: Address, path: str) -> Reply: ...

    async def close(self) -> None: ...
