"""What only the parent of several workers can answer: brought to it, and its answer back."""

from __future__ import annotations

from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.refusal import Refusal, try_again
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.wire.faults import OutOfSockets, UpstreamError
from vllmdeploy.wire.head import Field
from vllmdeploy.wire.limits import MIB
from vllmdeploy.wire.write import request_head

_PASSED_ON = (b"authorization", b"x-api-key", b"content-type")
_ANSWER_MAX = 256 * MIB


def is_parents(path: str) -> bool:
    return path in ("/", "/health", "/metrics") or path.startswith("/admin/")


async def ask_parent(gateway: Gateway, visit: Visit) -> None:
    """The parent looks at keys itself."""
    exchange, parent = visit.exchange, gateway.parent
    if parent is None:
        raise RuntimeError("only a worker has a parent")
    head = exchange.head
    fields: list[Field] = [(name, head.fields[name]) for name in _PASSED_ON if name in head.fields]
    fields += [(b"x-request-id", visit.id), (b"content-length", b"%d" % len(exchange.body))]
    target = f"{head.path}?{head.query}" if head.query else head.path
    method = "GET" if head.method == "HEAD" else head.method
    message = request_head(method, target, "parent", fields) + exchange.body
    try:
        connection, answer = await parent.ask(message, repeatable=method == "GET")
        body = await connection.collect(_ANSWER_MAX)
    except (UpstreamError, OutOfSockets) as error:
        why = f"the gateway's parent process does not answer: {error}"
        raise Refusal(503, why, fields=try_again(1)) from error
    parent.give_back(connection)
    block = b"%bx-request-id: %b\r\n" % (answer.block, visit.id)
    exchange.respond(answer.status, (), body, block=block)
