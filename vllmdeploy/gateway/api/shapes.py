"""JSON Schemas of what the gateway's own routes take and give."""

from __future__ import annotations

Schema = dict[str, object]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_USAGE: Schema = {
    "type": "object",
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
    },
}
_SAMPLING: Schema = {
    "model": {"type": "string", "description": "May be left out where one model is served."},
    "max_tokens": {"type": "integer", "default": 256, "minimum": 1},
    "n": {"type": "integer", "default": 1, "minimum": 1, "maximum": 64},
    "temperature": {"type": "number"},
    "top_p": {"type": "number"},
    "stop": {"type": ["string", "array"]},
    "seed": {"type": "integer"},
}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "code": _TEXT},
        }
    },
}
_INSTANCE: Schema = {
    "type": "object",
    "required": ["url"],
    "additionalProperties": False,
    "properties": {
        "id": _TEXT,
        "url": {"type": "string", "examples": ["http://10.0.0.2:8100"]},
        "models": {"type": "array", "items": _TEXT},
        "weight": {"type": "number", "exclusiveMinimum": 0, "default": 1},
        "cost": {"type": "number", "exclusiveMinimum": 0, "default": 1},
        "limit": {"type": "integer", "minimum": 1, "default": 256},
        "generation": _COUNT,
        "tensor_parallel_size": _COUNT,
        "max_num_seqs": _COUNT,
        "max_workers": _COUNT,
    },
}
_POLICY: Schema = {
    "type": "object",
    "properties": {"routing": _TEXT, "scheduling": _TEXT, "default_model": _TEXT},
}
_TEXT_OF_ONE: Schema = {
    "text": _TEXT,
    "texts": {"type": "array", "items": _TEXT, "description": "Where n is above 1."},
    "finish_reason": {"type": ["string", "null"]},
    "usage": _USAGE,
    "instance": _TEXT,
}

_WHEN: Schema = {"type": ["integer", "null"], "description": "Seconds since 1970."}
_FILE: Schema = {
    "type": "object",
    "required": ["id", "object", "bytes", "created_at", "filename", "purpose", "status"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "file"},
        "bytes": _COUNT,
        "created_at": _WHEN,
        "expires_at": _WHEN,
        "filename": _TEXT,
        "purpose": {"enum": ["batch", "batch_output"]},
        "status": _TEXT,
    },
}
_ENDED = ["completed", "failed", "expired", "cancelled"]
_BATCH: Schema = {
    "type": "object",
    "required": ["id", "object", "endpoint", "input_file_id", "status", "request_counts"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "batch"},
        "endpoint": _TEXT,
        "input_file_id": _TEXT,
        "output_file_id": {"type": ["string", "null"]},
        "error_file_id": {"type": ["string", "null"]},
        "status": {"enum": ["validating", "in_progress", "finalizing", "cancelling", *_ENDED]},
        "request_counts": {
            "type": "object",
            "properties": {"total": _COUNT, "completed": _COUNT, "failed": _COUNT},
        },
        "waiting": {"type": "string", "description": "Why it does not get on, where it does not."},
        "created_at": _WHEN,
        "expires_at": _WHEN,
        **{f"{name}_at": _WHEN for name in ("in_progress", "finalizing", *_ENDED)},
        "metadata": {"type": ["object", "null"]},
    },
}


def _page_of(one: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["object", "data", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": one},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
    }


SCHEMAS: Schema = {"Error": _ERROR}
FORM = "multipart/form-data"
MEDIA = {"/metrics": "text/plain", "/v1/files/{id}/content": "application/octet-stream"}
KEPT = ("/v1/files", "/v1/batches")

BODIES: dict[tuple[str, str], Schema] = {
    ("POST", "/generate"): {
        "type": "object",
        "description": "Either prompt, completed as it stands, or messages, with the template.",
        "properties": {
            "prompt": _TEXT,
            "messages": {"type": "array", "items": {"type": "object"}},
            "stream": {
                "type": "boolean",
                "description": 'Events `data: {"text": ...}`, then `data: [DONE]`.',
            },
            **_SAMPLING,
        },
    },
    ("POST", "/batch_generate"): {
        "type": "object",
        "required": ["prompts"],
        "properties": {
            "prompts": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1024},
            **_SAMPLING,
        },
    },
    ("POST", "/v1/files"): {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"const": "batch"},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
        },
    },
    ("POST", "/v1/batches"): {
        "type": "object",
        "required": ["input_file_id", "endpoint", "completion_window"],
        "properties": {
            "input_file_id": _TEXT,
            "endpoint": {"type": "string", "examples": ["/v1/chat/completions"]},
            "completion_window": {"type": "string", "examples": ["24h"], "pattern": "^[0-9]+h$"},
            "metadata": {"type": ["object", "null"]},
        },
    },
    ("POST", "/admin/instances"): _INSTANCE,
    ("PUT", "/admin/policy"): _POLICY,
}

ANSWERS: dict[tuple[str, str], Schema] = {
    ("POST", "/generate"): {
        "type": "object",
        "required": ["text", "finish_reason", "usage", "instance"],
        "properties": {"id": _TEXT, "model": _TEXT, **_TEXT_OF_ONE},
    },
    ("POST", "/batch_generate"): {
        "type": "object",
        "required": ["results", "usage"],
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index"],
                    "properties": {"index": _COUNT, "error": {"type": "object"}, **_TEXT_OF_ONE},
                },
            },
            "usage": _USAGE,
        },
    },
    ("GET", "/"): {
        "type": "object",
        "required": ["name", "version", "state", "models", "instances"],
        "properties": {
            "name": _TEXT,
            "version": _TEXT,
            "state": _TEXT,
            "models": {"type": "array", "items": _TEXT},
            "instances": {"type": "object", "properties": {"ready": _COUNT, "total": _COUNT}},
        },
    },
    ("GET", "/metrics"): _TEXT,
    ("POST", "/v1/files"): _FILE,
    ("GET", "/v1/files"): _page_of(_FILE),
    ("GET", "/v1/files/{id}"): _FILE,
    ("GET", "/v1/files/{id}/content"): {"type": "string", "format": "binary"},
    ("POST", "/v1/batches"): _BATCH,
    ("GET", "/v1/batches"): _page_of(_BATCH),
    ("GET", "/v1/batches/{id}"): _BATCH,
    ("POST", "/v1/batches/{id}/cancel"): _BATCH,
    ("GET", "/admin/policy"): _POLICY,
    ("PUT", "/admin/policy"): _POLICY,
}

HEADERS: tuple[Schema, ...] = (
    {
        "name": "x-priority",
        "in": "header",
        "description": "Where requests wait: a lower number goes first.",
        "schema": {"type": "integer"},
    },
    {
        "name": "x-deadline-ms",
        "in": "header",
        "description": "Milliseconds after which the answer is of no use.",
        "schema": {"type": "integer"},
    },
    {
        "name": "x-session-id",
        "in": "header",
        "description": "Requests of one session go to one instance under consistent_hash.",
        "schema": _TEXT,
    },
)
