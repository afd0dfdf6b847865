"""The engine's own routes: chosen by model, passed through as they are."""

from __future__ import annotations

from time import monotonic

from vllmdeploy.gateway.call import Call
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.relay import relay
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.gateway.wanted import read
from vllmdeploy.routing import retry
from vllmdeploy.wire.head import Field

PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
    *("/v1/messages", "/v1/rerank", "/v1/score", "/rerank", "/v2/rerank", "/score"),
    *("/tokenize", "/detokenize"),
)
# Nothing else of a client's reaches an engine: no key, no request id, no address.
_PASSED_ON = (b"content-type", b"accept", b"anthropic-version", b"anthropic-beta")


async def forward(gateway: Gateway, visit: Visit) -> None:
    exchange = visit.exchange
    path = exchange.head.path
    wanted = await read(exchange.head, exchange.body, monotonic(), gateway.spec.choices_max)
    call = Call(
        gateway.group_for(visit, wanted.model),
        path,
        exchange.body,
        passed_on(visit),
        wish=wanted.request,
        replayable=retry.replayable("POST", path, stored=wanted.stored),
    )
    try:
        answer = await gateway.dispatcher.ask(call)
    finally:
        visit.tries = call.tries
        visit.queued_s = call.queued_s
    await relay(visit, answer, gateway.dispatcher)


def passed_on(visit: Visit) -> tuple[Field, ...]:
    fields = visit.exchange.head.fields
    return tuple([(name, fields[name]) for name in _PASSED_ON if name in fields])
