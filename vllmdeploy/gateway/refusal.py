"""Answers that say no, in the shape that OpenAI's clients read."""

from __future__ import annotations

import json

from vllmdeploy.wire.head import Field

JSON: Field = (b"content-type", b"application/json")

_TYPES = {
    400: ("invalid_request_error", "bad_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("not_found_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    409: ("invalid_request_error", "conflict"),
    413: ("invalid_request_error", "body_too_large"),
    417: ("invalid_request_error", "expectation_failed"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    431: ("invalid_request_error", "head_too_large"),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "timeout"),
}


def error_value(status: int, message: str, code: str = "") -> dict[str, str]:
    fallback = _TYPES[400] if 400 <= status < 500 else ("server_error", "internal_error")
    kind, default = _TYPES.get(status, fallback)
    return {"message": message, "type": kind, "code": code or default}


def error_body(status: int, message: str, code: str = "") -> bytes:
    return json.dumps({"error": error_value(status, message, code)}).encode()


class Refusal(Exception):
    """Raised anywhere on the way of a request, answered in one place."""

    def __init__(
        self, status: int, message: str, *, code: str = "", fields: tuple[Field, ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.fields = fields

    def body(self) -> bytes:
        return error_body(self.status, self.message, self.code)


def try_again(seconds: int) -> tuple[Field, ...]:
    return ((b"retry-after", b"%d" % seconds),)
