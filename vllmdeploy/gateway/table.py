"""All routes there are, in one table."""

from __future__ import annotations

from dataclasses import replace

from vllmdeploy.gateway.access import Door
from vllmdeploy.gateway.api import admin, batches, files, service
from vllmdeploy.gateway.api.answers import answer_json
from vllmdeploy.gateway.api.batch_generate import batch_generate
from vllmdeploy.gateway.api.forward import PATHS, forward
from vllmdeploy.gateway.api.generate import generate
from vllmdeploy.gateway.api.openapi import document
from vllmdeploy.gateway.api.parents import ask_parent, is_parents
from vllmdeploy.gateway.app import Route, Routes
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.visit import Visit

_ABOUT = {
    "/v1/chat/completions": "OpenAI chat completions.",
    "/v1/completions": "OpenAI completions.",
    "/v1/embeddings": "OpenAI embeddings.",
    "/v1/responses": "OpenAI responses.",
    "/v1/messages": "Anthropic messages.",
    "/v1/rerank": "Order documents by a query.",
    "/v2/rerank": "Order documents by a query.",
    "/rerank": "Order documents by a query.",
    "/v1/score": "Score pairs of texts.",
    "/score": "Score pairs of texts.",
    "/tokenize": "Text to token ids.",
    "/detokenize": "Token ids to text.",
}


def routes(*, in_worker: bool = False) -> Routes:
    """A worker has its parent's routes too, and asks there."""
    table = [
        Route("GET", "/", Door.OPEN, service.root, "Who this is and what it serves."),
        Route("GET", "/health", Door.OPEN, service.health, "200 with a ready instance."),
        Route("GET", "/metrics", Door.OPEN, service.metrics, "Numbers for Prometheus."),
        Route("POST", "/generate", Door.KEY, generate, "Text for one prompt or conversation."),
        Route("POST", "/batch_generate", Door.KEY, batch_generate, "Texts for many prompts."),
        Route("GET", "/v1/models", Door.KEY, service.models, "The models served."),
        Route("GET", "/v1/models/{model}", Door.KEY, service.model, "One model served."),
        *(Route("POST", path, Door.KEY, forward, _ABOUT[path]) for path in PATHS),
        *_files(),
        *_batches(),
        *_admin(),
    ]

    async def openapi(_: Gateway, visit: Visit) -> None:
        answer_json(visit, document(table))

    table.append(Route("GET", "/openapi.json", Door.OPEN, openapi, "This description."))
    if in_worker:
        return Routes(tuple(_by_parent(one) if is_parents(one.path) else one for one in table))
    return Routes(tuple(table))


def _by_parent(route: Route) -> Route:
    return replace(route, door=Door.OPEN, handle=ask_parent)


def _files() -> tuple[Route, ...]:
    key, one = Door.KEY, "/v1/files/{id}"
    about = "Upload a file of requests for a batch."
    return (
        Route("POST", "/v1/files", key, files.upload, about, files.receive),
        Route("GET", "/v1/files", key, files.list_files, "The files of this key."),
        Route("GET", one, key, files.get_file, "One file."),
        Route("DELETE", one, key, files.delete_file, "Delete a file."),
        Route("GET", f"{one}/content", key, files.content, "What is in a file."),
    )


def _batches() -> tuple[Route, ...]:
    key, one = Door.KEY, "/v1/batches/{id}"
    return (
        Route("POST", "/v1/batches", key, batches.create_batch, "Work a file of requests off."),
        Route("GET", "/v1/batches", key, batches.list_batches, "The batches of this key."),
        Route("GET", one, key, batches.get_batch, "How far a batch is."),
        Route("POST", f"{one}/cancel", key, batches.cancel_batch, "Stop a batch."),
    )


def _admin() -> tuple[Route, ...]:
    one = "/admin/instances/{id}"
    return (
        Route("GET", "/admin/instances", Door.ADMIN, admin.list_instances, "All instances."),
        Route("POST", "/admin/instances", Door.ADMIN, admin.add_instance, "Add an instance."),
        Route("DELETE", one, Door.ADMIN, admin.remove_instance, "Remove an instance."),
        Route("POST", f"{one}/drain", Door.ADMIN, admin.drain, "Send it nothing more."),
        Route("POST", f"{one}/resume", Door.ADMIN, admin.resume, "Send it requests again."),
        Route("GET", "/admin/policy", Door.ADMIN, admin.get_policy, "How requests find instances."),
        Route("PUT", "/admin/policy", Door.ADMIN, admin.put_policy, "Change that."),
    )
