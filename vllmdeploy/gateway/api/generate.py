"""POST /generate: one prompt or conversation, its text back, whole or as it is made."""

from __future__ import annotations

import json
from time import monotonic

from vllmdeploy.gateway.api.answers import answer_json
from vllmdeploy.gateway.api.ask import ask_json, engine_refusal
from vllmdeploy.gateway.api.texts import engine_body, engine_path, of_answer, of_event
from vllmdeploy.gateway.call import Answer, Call, failure_of
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.jsonvalue import NOTHING, as_int, as_object, loads
from vllmdeploy.gateway.members import NotJson, members
from vllmdeploy.gateway.refusal import Refusal, error_body
from vllmdeploy.gateway.relay import is_events
from vllmdeploy.gateway.sse import DONE, Events
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.gateway.wanted import read
from vllmdeploy.routing.failure import Failure
from vllmdeploy.wire.faults import NotHttp, UpstreamError
from vllmdeploy.wire.head import Field
from vllmdeploy.wire.limits import MIB

JSON_FIELDS: tuple[Field, ...] = ((b"content-type", b"application/json"),)


async def generate(gateway: Gateway, visit: Visit) -> None:
    exchange = visit.exchange
    wanted = await read(exchange.head, exchange.body, monotonic(), gateway.spec.choices_max)
    try:
        parts = await members(exchange.body)
    except NotJson as error:
        raise Refusal(400, f"the body is not a JSON object: {error}") from error
    path = engine_path(parts)
    group = gateway.group_for(visit, wanted.model)
    body = engine_body(parts, group.model)
    call = Call(group, path, body, JSON_FIELDS, wanted.request)
    try:
        if wanted.stream:
            await _stream(gateway, visit, call)
        else:
            await _whole(gateway, visit, call)
    finally:
        visit.tries, visit.queued_s, visit.instance = call.tries, call.queued_s, call.at


async def _whole(gateway: Gateway, visit: Visit, call: Call) -> None:
    instance, answer = await ask_json(gateway, call)
    visit.first_byte_at = monotonic()
    usage = as_object(answer.get("usage")) or NOTHING
    visit.tokens = as_int(usage.get("completion_tokens")) or 0
    value = {
        "id": answer.get("id"),
        "model": answer.get("model"),
        **of_answer(answer),
        "instance": instance,
    }
    answer_json(visit, value)


async def _stream(gateway: Gateway, visit: Visit, call: Call) -> None:
    answer = await gateway.dispatcher.ask(call)
    visit.instance = answer.instance.id
    failure: Failure | None = None
    try:
        if answer.head.status >= 400 or not is_events(answer):
            await _no_stream(answer)
        failure = await _pass_texts(gateway, visit, answer)
    except UpstreamError as error:
        failure = failure_of(error)
        if not visit.exchange.started:
            raise Refusal(502, f"{visit.instance}: {error}", code="bad_gateway") from error
        _broken(visit, str(error))
    except Refusal:
        raise
    except BaseException:
        failure = Failure.CLIENT_GONE
        raise
    finally:
        visit.failure = failure
        visit.exchange.flow = None
        gateway.dispatcher.settle(answer, failure)


async def _no_stream(answer: Answer) -> None:
    body = answer.connection.collected
    if body is None:
        body = await answer.connection.collect(MIB)
    try:
        said = as_object(loads(body)) or NOTHING
    except ValueError:
        said = NOTHING
    raise engine_refusal(answer.head.status if answer.head.status >= 400 else 502, said)


async def _pass_texts(gateway: Gateway, visit: Visit, answer: Answer) -> Failure | None:
    exchange, connection = visit.exchange, answer.connection
    events = Events()
    ended = failed = False

    def pass_on(piece: bytes) -> None:
        nonlocal ended, failed
        out: list[bytes] = []
        try:
            for data in events.feed(piece):
                if data == DONE[6:]:
                    ended = True
                elif (event := of_event(data)) is not None:
                    failed = failed or "error" in event
                    visit.events += 1
                    out.append(b"data: " + json.dumps(event).encode() + b"\n\n")
        except ValueError as error:
            raise NotHttp(f"an event of the stream cannot be read: {error}") from error
        if out and not visit.first_byte_at:
            visit.first_byte_at = monotonic()
            answer.instance.load.first_byte(visit.first_byte_at - answer.began)
        exchange.write(b"".join(out))

    exchange.start(
        200, ((b"content-type", b"text/event-stream"), (b"x-request-id", visit.id)), None
    )
    exchange.flow = lambda paused: connection.flow(paused=paused)
    await connection.relay(pass_on)
    visit.tokens = visit.events
    if failed:
        exchange.finish()
        return Failure.STREAM_ERROR
    if not ended:
        _broken(visit, "the stream ended before its end")
        return Failure.STREAM_ERROR
    exchange.write(DONE + b"\n\n")
    exchange.finish()
    return None


def _broken(visit: Visit, why: str) -> None:
    message = f"the instance stopped answering: {why}"
    visit.exchange.write(b"data: " + error_body(502, message, "stream_broken") + b"\n\n")
    visit.exchange.finish()
