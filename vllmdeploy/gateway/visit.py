"""One request of a client on its way through the gateway, and what is told of it afterwards."""

from __future__ import annotations

import itertools
import os
import re
from typing import TYPE_CHECKING

from vllmdeploy.gateway.keys import Identity
from vllmdeploy.routing.failure import Failure
from vllmdeploy.wire.exchange import Exchange
from vllmdeploy.wire.head import Field

if TYPE_CHECKING:
    from vllmdeploy.gateway.api.files_upload import Upload

_OWN_ID = re.compile(rb"[A-Za-z0-9\-]{1,64}")
_START = os.urandom(6).hex().encode()
_COUNT = itertools.count(1)


class Visit:
    """Only numbers and names are kept: no text of a prompt or an answer."""

    model: str = ""
    instance: str = ""
    tries: int = 0
    queued_s: float = 0.0
    first_byte_at: float = 0.0
    events: int = 0
    tokens: int = 0
    failure: Failure | None = None
    upload: Upload | None = None

    def __init__(self, exchange: Exchange, identity: Identity) -> None:
        self.exchange = exchange
        self.route = "unknown"
        self.identity = identity
        self.id = request_id(exchange.head.fields.get(b"x-request-id"))

    def fields(self) -> Field:
        return (b"x-request-id", self.id)


def request_id(sent: bytes | None) -> bytes:
    """The client's own is echoed if it is harmless; it is never sent to an upstream."""
    if sent is not None and _OWN_ID.fullmatch(sent):
        return sent
    return b"%b-%x" % (_START, next(_COUNT))
