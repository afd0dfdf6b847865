"""What the demo asks its API, over HTTP as anybody would."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

import httpx

from vllmdeploy.errors import NotHealthy

_FRANCE = "What is the capital of France? Answer in one sentence."
_QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", {"prompt": "The capital of France is", "max_tokens": 12}),
    (
        "/batch_generate",
        {
            "prompts": ["The capital of Italy is", "Water boils at", "The sun is a"],
            "max_tokens": 12,
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": _FRANCE}], "max_tokens": 24},
    ),
)
_LONG = {"prompt": "Once upon a time", "max_tokens": 128, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with what came back, and how quickly."""

    route: str
    question: str
    texts: tuple[str, ...]
    tokens: int
    seconds: float


def ask_all(url: str, key: str) -> Generator[Answered]:
    """Every kind of question once, then a long answer, whose pace is worth showing."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        for route, body in (*_QUESTIONS, ("/generate", _LONG)):
            yield _ask(client, route, body)


def _ask(client: httpx.Client, route: str, body: dict[str, Any]) -> Answered:
    began = time.monotonic()
    try:
        answer = client.post(route, json={"temperature": 0, **body})
    except httpx.HTTPError as error:
        raise NotHealthy(f"the demo's API does not answer {route}: {error}") from error
    if not answer.is_success:
        why = answer.text[:500]
        raise NotHealthy(f"the demo's API answers {route} with {answer.status_code}: {why}")
    seconds = time.monotonic() - began
    shown = cast("dict[str, Any]", answer.json())
    return Answered(
        route,
        str(body.get("prompt") or body.get("prompts") or body["messages"][0]["content"]),
        tuple(_texts(shown)),
        int(shown["usage"]["completion_tokens"]),
        seconds,
    )


def _texts(shown: dict[str, Any]) -> Generator[str]:
    if "text" in shown:
        yield str(shown["text"])
    for one in shown.get("results", ()):
        yield str(one.get("text") or one.get("error"))
    for one in shown.get("choices", ()):
        yield str(one["message"]["content"])
