"""Who may come in: networks, keys, and the administrators' own key."""

from __future__ import annotations

import time
from enum import Enum

from vllmdeploy.gateway.address import Network, inside, plain_ip
from vllmdeploy.gateway.keys import ANYBODY, Identity, Keys, parse
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.wire.exchange import Exchange
from vllmdeploy.wire.head import RequestHead

_BEARER = b"bearer "
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_KEY_NOTE = "key"
_PEER_NOTE = "peer allowed"


class Door(Enum):
    OPEN = "open"
    KEY = "key"
    ADMIN = "admin"


class Access:
    """`keyless`: no keys are asked for, and only the networks guard."""

    def __init__(self, *, keyless: bool, networks: tuple[Network, ...] = ()) -> None:
        self.keyless = keyless
        self._networks = networks
        self._keys = Keys()
        self._admins = Keys()
        self.version = 0  # grows with each change of keys: what was decided before is void

    async def take_keys(self, text: str, path: str) -> None:
        self._keys = parse(text, path)
        self.version += 1

    async def take_admin_keys(self, text: str, path: str) -> None:
        self._admins = parse(text, path)
        self.version += 1

    @property
    def has_keys(self) -> bool:
        return bool(self._keys.entries)

    def of_owner(self, owner: str) -> Identity | None:
        """None: the key is gone, or has expired."""
        if self.keyless:
            return ANYBODY if owner == ANYBODY.owner else None
        return self._keys.of_owner(owner, time.time())

    def enter(self, exchange: Exchange, door: Door) -> Identity:
        if self._networks and not self._peer_is_inside(exchange):
            raise Refusal(403, "this address may not use the gateway", code="address_not_allowed")
        if door is Door.ADMIN:
            return self._identify(exchange, self._admins, "an admin key")
        if door is Door.OPEN or self.keyless:
            return ANYBODY
        identity = self._identify(exchange, self._keys, "an API key")
        if exchange.trust is not None:
            exchange.trust()
        return identity

    def _identify(self, exchange: Exchange, keys: Keys, what: str) -> Identity:
        presented = _presented(exchange.head)
        if presented is None:
            message = f"{what} is needed: Authorization: Bearer KEY"
            raise Refusal(401, message, fields=_CHALLENGE)
        # What this very connection has shown before need not be looked up again. The file of keys
        # may have changed since: a new file is a new object.
        note = exchange.notes.get(_KEY_NOTE)
        if isinstance(note, _Seen) and note.keys is keys and note.presented == presented:
            identity: Identity | None = note.identity
            if note.identity.expires and time.time() >= note.identity.expires:
                identity = None
        else:
            identity = keys.identify(presented, time.time())
        if identity is None:
            raise Refusal(401, f"{what} is needed, and this is none", fields=_CHALLENGE)
        exchange.notes[_KEY_NOTE] = _Seen(keys, presented, identity)
        return identity

    def _peer_is_inside(self, exchange: Exchange) -> bool:
        known = exchange.notes.get(_PEER_NOTE)
        if known is None:
            known = inside(plain_ip(exchange.peer), self._networks)
            exchange.notes[_PEER_NOTE] = known
        return known is True


class _Seen:
    __slots__ = ("identity", "keys", "presented")

    def __init__(self, keys: Keys, presented: bytes, identity: Identity) -> None:
        self.keys = keys
        self.presented = presented
        self.identity = identity


def _presented(head: RequestHead) -> bytes | None:
    authorization = head.fields.get(b"authorization")
    if authorization is not None:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            return None
        return authorization[len(_BEARER) :].strip()
    return head.fields.get(b"x-api-key")
