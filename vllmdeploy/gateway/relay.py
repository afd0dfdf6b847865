"""An instance's answer, passed on to the client as it comes."""

from __future__ import annotations

import re
from time import monotonic

from vllmdeploy.gateway.call import Answer, failure_of
from vllmdeploy.gateway.dispatch import Dispatcher
from vllmdeploy.gateway.journal import warn
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.gateway.sse import Watch
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.routing.failure import Failure
from vllmdeploy.wire.faults import UpstreamError
from vllmdeploy.wire.head import AnswerHead

_USED_NAME = b'"completion_tokens"'
_USED = re.compile(_USED_NAME + rb":\s*([0-9]{1,12})")
_USED_WITHIN = 2048  # bytes from the end
# These end their streams with [DONE]; the other APIs have ends of their own.
ENDS_WITH_DONE = frozenset({"/v1/completions", "/v1/chat/completions"})


async def relay(visit: Visit, answer: Answer, dispatcher: Dispatcher) -> None:
    """Settles the answer, whatever happens."""
    failure: Failure | None = None
    visit.instance = answer.instance.id
    try:
        if answer.failure is Failure.GARBAGE:
            raise Refusal(502, f"{answer.instance.id} answered with a redirect", code="redirect")
        body = answer.connection.collected
        # A short stream can be here whole already, and must be looked at all the same.
        if body is None or answer.head.events:
            failure = await _stream(visit, answer, dispatcher)
        else:
            visit.first_byte_at = monotonic()
            _whole(visit, answer, body)
    except UpstreamError as error:
        failure = failure_of(error)
        _cut(visit, error)
    except Refusal:
        raise
    except BaseException:
        failure = Failure.CLIENT_GONE
        raise
    finally:
        visit.failure = failure or answer.failure
        dispatcher.settle(answer, failure)


def _whole(visit: Visit, answer: Answer, body: bytes) -> None:
    fields = [(b"retry-after", b"1")] if answer.failure is Failure.BUSY else []
    at = body.rfind(_USED_NAME, max(0, len(body) - _USED_WITHIN))
    used = _USED.match(body, at) if at >= 0 else None
    if used is not None:
        visit.tokens = int(used[1])
    visit.exchange.respond(answer.head.status, fields, body, block=_block(visit, answer.head))


async def _stream(visit: Visit, answer: Answer, dispatcher: Dispatcher) -> Failure | None:
    """Raises UpstreamError when the answer does not come to its end."""
    exchange, connection, head = visit.exchange, answer.connection, answer.head
    watch = Watch() if is_events(answer) else None

    waiting = True

    def pass_on(piece: bytes) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            visit.first_byte_at = monotonic()
            answer.instance.load.first_byte(visit.first_byte_at - answer.began)
        if watch is not None:
            watch.see(piece)
        exchange.write(piece)

    length = head.length if head.length >= 0 else None
    exchange.start(head.status, (), length, block=_block(visit, head))
    exchange.flow = lambda paused: connection.flow(paused=paused)
    try:
        await connection.relay(pass_on)
    except UpstreamError as error:
        if watch is None:
            raise
        _say_broken(visit, watch, str(error))
        return failure_of(error)
    finally:
        exchange.flow = None
        if watch is not None:
            visit.tokens = visit.events = watch.events
    if watch is not None and _unfinished(visit, answer, watch):
        _say_broken(visit, watch, "the stream ended before its end")
        return Failure.STREAM_ERROR
    exchange.finish()
    return Failure.STREAM_ERROR if watch is not None and watch.failed else None


def is_events(answer: Answer) -> bool:
    return answer.head.events


def _unfinished(visit: Visit, answer: Answer, watch: Watch) -> bool:
    return (
        answer.failure is None
        and not watch.done
        and not watch.failed
        and visit.exchange.head.path in ENDS_WITH_DONE
    )


def _say_broken(visit: Visit, watch: Watch, why: str) -> None:
    """A stream that stops without a word looks to its reader as if it were whole."""
    warn("stream broken", request=visit.id.decode(), instance=visit.instance, why=why)
    visit.exchange.write(watch.error_event(f"the instance stopped answering: {why}"))
    visit.exchange.finish()


def _cut(visit: Visit, error: UpstreamError) -> None:
    if not visit.exchange.started:
        raise Refusal(502, f"{visit.instance}: {error}", code="bad_gateway") from error
    warn("answer cut", request=visit.id.decode(), instance=visit.instance, why=str(error))
    visit.exchange.abort()


def _block(visit: Visit, head: AnswerHead) -> bytes:
    """The engine's fields, as they came, and the gateway's own."""
    return b"%bx-request-id: %b\r\n" % (head.block, visit.id)
