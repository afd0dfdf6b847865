"""GET /openapi.json: written from the table of routes itself, so that it cannot drift from it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllmdeploy import __version__
from vllmdeploy.gateway.access import Door
from vllmdeploy.gateway.api import shapes
from vllmdeploy.gateway.app import Route

_PARAMETER = re.compile(r"\{([a-z]+)\}")


def document(table: Sequence[Route]) -> dict[str, object]:
    paths: dict[str, dict[str, object]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllmdeploy gateway", "version": __version__},
        "paths": paths,
        "components": {"schemas": shapes.SCHEMAS, "securitySchemes": keys},
    }


def _operation(route: Route) -> dict[str, object]:
    found: dict[str, object] = {
        "summary": route.about,
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{route.method}{route.path}".lower()).strip("_"),
        "responses": _responses(route),
        "security": [] if route.door is Door.OPEN else [{"bearer": []}, {"apiKey": []}],
    }
    names = _PARAMETER.findall(route.path)
    parameters: list[object] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    kept = route.path.startswith(shapes.KEPT)
    if route.method == "POST" and route.door is Door.KEY and not kept:
        parameters.extend(shapes.HEADERS)
    if parameters:
        found["parameters"] = parameters
    body = shapes.BODIES.get((route.method, route.path))
    if body is None and route.method == "POST" and route.door is Door.KEY and not kept:
        body = {"type": "object", "description": "As the engine's own API has it."}
    if body is not None:
        media = shapes.FORM if route.receive is not None else "application/json"
        found["requestBody"] = {"required": True, "content": {media: {"schema": body}}}
    return found


def _responses(route: Route) -> dict[str, object]:
    media = shapes.MEDIA.get(route.path, "application/json")
    schema = shapes.ANSWERS.get((route.method, route.path), {"type": "object"})
    created = (route.method, route.path) == ("POST", "/admin/instances")
    found: dict[str, object] = {
        "201" if created else "200": {
            "description": "The answer.",
            "content": {media: {"schema": schema}},
        }
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    codes = ["503"] if route.door is Door.OPEN else ["400", "401", "403", "404", "503"]
    if route.path.startswith(shapes.KEPT):
        codes += ["501", "507"]
    if route.path != "/health":
        found.update((code, {"description": "An error.", "content": error}) for code in codes)
    else:
        found["503"] = {
            "description": "No instance is ready.",
            "content": {media: {"schema": schema}},
        }
    return found
