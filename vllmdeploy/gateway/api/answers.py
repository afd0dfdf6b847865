"""Answers of the gateway's own, written as JSON."""

from __future__ import annotations

import json

from vllmdeploy.gateway.jsonvalue import Object, as_object, loads
from vllmdeploy.gateway.refusal import JSON, Refusal
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.wire.head import Field


def answer_json(
    visit: Visit, value: object, status: int = 200, fields: tuple[Field, ...] = ()
) -> None:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    visit.exchange.respond(status, (JSON, (b"x-request-id", visit.id), *fields), body)


def body_object(visit: Visit) -> Object:
    """For short bodies only."""
    try:
        found = as_object(loads(visit.exchange.body))
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if found is None:
        raise Refusal(400, "the body must be a JSON object")
    return found
