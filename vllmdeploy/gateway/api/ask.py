"""Asks an instance on behalf of the gateway's own routes and reads the whole answer."""

from __future__ import annotations

from vllmdeploy.gateway.call import Call, failure_of
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.jsonvalue import Object, as_object, loads
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.routing.failure import Failure
from vllmdeploy.wire.faults import UpstreamError
from vllmdeploy.wire.limits import MIB

_ANSWER_MAX = 64 * MIB


async def ask_json(gateway: Gateway, call: Call) -> tuple[str, Object]:
    """The instance's name and its answer; a Refusal carries what the engine said against it."""
    answer = await gateway.dispatcher.ask(call)
    failure: Failure | None = None
    name = answer.instance.id
    try:
        body = answer.connection.collected
        if body is None:
            body = await answer.connection.collect(_ANSWER_MAX)
        found = as_object(loads(body))
        if found is None:
            raise ValueError("no object")
    except UpstreamError as error:
        failure = failure_of(error)
        raise Refusal(502, f"{name}: {error}", code="bad_gateway") from error
    except ValueError as error:
        if answer.head.status >= 400:
            raise Refusal(answer.head.status, f"{name} said no without saying why") from error
        failure = Failure.GARBAGE
        raise Refusal(502, f"{name} answered with what is not JSON", code="bad_gateway") from error
    except BaseException:
        failure = Failure.CLIENT_GONE
        raise
    finally:
        gateway.dispatcher.settle(answer, failure)
    if answer.head.status >= 400:
        raise engine_refusal(answer.head.status, found)
    return name, found


def engine_refusal(status: int, body: Object) -> Refusal:
    """vLLM's older versions put the message at the top, FastAPI calls it detail."""
    inner = as_object(body.get("error")) or body
    message = inner.get("message") or body.get("detail")
    code = inner.get("type")
    said = message if isinstance(message, str) else f"the engine answered with status {status}"
    return Refusal(status, said, code=code if isinstance(code, str) else "")
