"""What a call through a client can end with; named as the openai SDK names them.

APIError
├── APIConnectionError ........ no instance gave a whole answer
│   └── APITimeoutError ....... not in time
└── APIStatusError ............ an instance answered with an error
    ├── BadRequestError ....... 400
    ├── AuthenticationError ... 401
    ├── PermissionDeniedError . 403
    ├── NotFoundError ......... 404
    ├── ConflictError ......... 409
    ├── UnprocessableEntityError 422
    ├── RateLimitError ........ 429
    └── InternalServerError ... 5xx
"""

from __future__ import annotations

import json
from typing import Any

from vllmdeploy.errors import EXIT_COMMAND, VllmdeployError


class APIError(VllmdeployError):
    exit_code = EXIT_COMMAND


class APIConnectionError(APIError):
    pass


class APITimeoutError(APIConnectionError):
    pass


class APIStatusError(APIError):
    """`body` is the error as the engine gave it; `instance` who gave it."""

    def __init__(self, instance: str, status_code: int, body: Any) -> None:
        super().__init__(f"{instance}: {status_code}: {_words(body)}")
        self.instance = instance
        self.status_code = status_code
        self.body = body


class BadRequestError(APIStatusError):
    pass


class AuthenticationError(APIStatusError):
    pass


class PermissionDeniedError(APIStatusError):
    pass


class NotFoundError(APIStatusError):
    pass


class ConflictError(APIStatusError):
    pass


class UnprocessableEntityError(APIStatusError):
    pass


class RateLimitError(APIStatusError):
    pass


class InternalServerError(APIStatusError):
    pass


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(instance: str, status: int, raw: bytes) -> APIStatusError:
    try:
        body: Any = json.loads(raw)
    except ValueError:
        body = raw.decode("utf-8", "replace")
    kind = _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)
    return kind(instance, status, body)


def _words(body: Any) -> str:
    """vLLM says {"error": {"message": ...}} and, in older versions, {"message": ...}."""
    match body:
        case {"error": {"message": str(message)}} | {"message": str(message)}:
            return message[:400]
        case {"error": str(message)} | {"detail": str(message)}:
            return message[:400]
        case _:
            return str(body)[:400] or "(no words)"
