"""The routes that exist, the door before each, and what is written down of every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from vllmdeploy.gateway.access import Door
from vllmdeploy.gateway.access_log import AccessLog
from vllmdeploy.gateway.api.files_upload import FORM_MAX, Upload
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.journal import bug
from vllmdeploy.gateway.keys import ANYBODY, Identity
from vllmdeploy.gateway.meters import observe
from vllmdeploy.gateway.refusal import JSON, Refusal, error_body
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.routing.failure import Failure
from vllmdeploy.wire.exchange import Exchange
from vllmdeploy.wire.server import Admitted

_ENTERED = "entered"
Handler = Callable[[Gateway, Visit], Coroutine[Any, Any, None]]
# Where a body is too long to be kept in memory: what takes it, made when its head is there.
Receiver = Callable[[Gateway, Visit], Upload]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as it stands in metrics and the description; one that ends in a parameter matches
    any single last part."""

    method: str
    path: str
    door: Door
    handle: Handler
    about: str = ""
    receive: Receiver | None = None


class Routes:
    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.all = routes
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in routes:
            if "{" in route.path:
                parts = tuple("" if part.startswith("{") else part for part in _parts(route.path))
                self._patterns.setdefault(parts, {})[route.method] = route
            else:
                self._exact.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> Route:
        methods = self._exact.get(path) or self._by_pattern(path)
        if methods is None:
            raise Refusal(404, "there is no such route; see /openapi.json", code="unknown_route")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(sorted(methods)).encode()
            message = f"this route answers to {allowed.decode()} only"
            raise Refusal(405, message, fields=((b"allow", allowed),))
        return route

    def _by_pattern(self, path: str) -> dict[str, Route] | None:
        parts = _parts(path)
        for pattern, methods in self._patterns.items():
            if len(pattern) == len(parts) and all(
                mine in ("", theirs) and theirs for mine, theirs in zip(pattern, parts, strict=True)
            ):
                return methods
        return None


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.strip("/").split("/"))


class _Entered(NamedTuple):
    """Who was let in where, with which fields of a head, under which keys."""

    fields: Mapping[bytes, bytes]
    version: int
    route: Route
    identity: Identity


class App:
    def __init__(self, gateway: Gateway, routes: Routes, log: AccessLog) -> None:
        self._gateway = gateway
        self._routes = routes
        self._log = log
        self._body_limit = gateway.spec.limits.body

    def admit(self, exchange: Exchange) -> Admitted | None:
        visit = Visit(exchange, ANYBODY)
        try:
            route = self._enter(visit)
            if route.receive is not None:
                visit.upload = route.receive(self._gateway, visit)
        except Refusal as refusal:
            _answer(visit, refusal)
            self._record(visit)
            return None
        limit = self._body_limit if visit.upload is None else FORM_MAX
        return Admitted(partial(self._serve, visit, route.handle), limit, visit.upload)

    async def inside(self, exchange: Exchange, owner: str) -> None:
        """A request of the gateway's own, on behalf of a key that may be gone by now."""
        identity = self._gateway.access.of_owner(owner)
        visit = Visit(exchange, identity or ANYBODY)
        try:
            if identity is None:
                raise Refusal(401, "the key of this batch is gone, or has expired")
            route = self._routes.find(exchange.head.method, exchange.head.path)
        except Refusal as refusal:
            _answer(visit, refusal)
            self._record(visit)
            return
        visit.route = route.path
        await self._serve(visit, route.handle, exchange)

    def _enter(self, visit: Visit) -> Route:
        """Who sends the same head on the same connection again, but for its length, comes in as
        before, unless the keys have changed meanwhile; what a key may do, and how often, is asked
        each time."""
        exchange, access = visit.exchange, self._gateway.access
        head = exchange.head
        known = exchange.notes.get(_ENTERED)
        # Heads that differ in their length alone have the very same fields: see Known.
        if (
            isinstance(known, _Entered)
            and known.fields is head.fields
            and known.version == access.version
        ):
            visit.route, visit.identity = known.route.path, known.identity
            return known.route
        route = self._routes.find(head.method, head.path)
        visit.route = route.path
        visit.identity = identity = access.enter(exchange, route.door)
        if not identity.expires:  # a clock can end it without anybody changing the keys
            exchange.notes[_ENTERED] = _Entered(head.fields, access.version, route, identity)
        return route

    def refusal(self, status: int, reason: str) -> bytes:
        return error_body(status, reason)

    def refused(self, peer: str, status: int, reason: str) -> None:
        refused = self._gateway.meters.refused
        labels = (str(status),)
        refused[labels] = refused.get(labels, 0) + 1
        self._log.refused(peer, status, reason)

    def broken(self, error: Exception) -> None:
        bug("a bug in the gateway", error)

    async def _serve(self, visit: Visit, handle: Handler, _: Exchange) -> None:
        try:
            await handle(self._gateway, visit)
        except Refusal as refusal:
            _answer(visit, refusal)
        except asyncio.CancelledError:
            visit.failure = Failure.CLIENT_GONE
            raise
        except Exception as error:
            bug(f"a bug in {visit.route}", error)
            _answer(visit, Refusal(500, "the gateway has a bug; its log has the details"))
        finally:
            if not visit.exchange.done:
                visit.exchange.abort()
            self._record(visit)

    def _record(self, visit: Visit) -> None:
        exchange, meters = visit.exchange, self._gateway.meters
        now = monotonic()
        status = 0 if visit.failure is Failure.CLIENT_GONE else exchange.status
        meters.answered(visit.route, visit.model, status, now - exchange.received_at)
        if visit.first_byte_at:
            waited = visit.first_byte_at - exchange.received_at
            observe(meters.first_bytes, (visit.model,), waited)
        if visit.queued_s:
            observe(meters.waits, (visit.model,), visit.queued_s)
        if visit.tokens:
            labels = (visit.model,)
            meters.tokens[labels] = meters.tokens.get(labels, 0) + visit.tokens
            self._gateway.ledger.spend(visit.identity, visit.tokens)
        if visit.events and visit.failure not in (None, Failure.CLIENT_GONE):
            meters.broken_streams += 1
        if self._log.wanted:
            self._log.write(visit, status, now, time.time())


def _answer(visit: Visit, refusal: Refusal) -> None:
    exchange = visit.exchange
    if exchange.started:
        exchange.abort()
        return
    fields = (JSON, (b"x-request-id", visit.id), *refusal.fields)
    exchange.respond(refusal.status, fields, refusal.body())
