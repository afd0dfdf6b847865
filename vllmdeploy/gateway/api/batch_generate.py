"""POST /batch_generate: many prompts, their texts back in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from vllmdeploy.core.tasks import TaskGroup
from vllmdeploy.gateway.api.answers import answer_json
from vllmdeploy.gateway.api.ask import ask_json
from vllmdeploy.gateway.api.generate import JSON_FIELDS
from vllmdeploy.gateway.api.texts import COMPLETIONS, engine_body, of_answer
from vllmdeploy.gateway.call import Call, Share
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.jsonvalue import as_int, as_object
from vllmdeploy.gateway.members import NotJson, elements, members
from vllmdeploy.gateway.refusal import Refusal, error_value
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.gateway.wanted import read, request_of

_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
Result = dict[str, object]


async def batch_generate(gateway: Gateway, visit: Visit) -> None:
    exchange = visit.exchange
    wanted = await read(exchange.head, exchange.body, monotonic(), gateway.spec.choices_max)
    if wanted.stream:
        raise Refusal(400, "a batch is not streamed; use /generate for one prompt")
    parts, prompts = await _prompts(exchange.body, gateway.spec.prompts_max)
    batch = _Batch(gateway, visit, parts, prompts, wanted.model)
    await batch.run()
    visit.tokens = batch.usage["completion_tokens"]
    answer_json(visit, {"results": batch.results, "usage": batch.usage})


async def _prompts(body: bytes, most: int) -> tuple[dict[str, bytes], list[bytes]]:
    try:
        parts = await members(body)
        raw = parts.pop("prompts", b"")
        if raw[:1] != b"[":
            raise Refusal(400, "`prompts` must be a list of texts")
        prompts = await elements(raw)
    except NotJson as error:
        raise Refusal(400, f"the body is not a JSON object: {error}") from error
    if not prompts:
        raise Refusal(400, "`prompts` is empty")
    if len(prompts) > most:
        raise Refusal(400, f"{len(prompts)} prompts; one batch may have {most}")
    if "prompt" in parts or "messages" in parts:
        raise Refusal(400, "a batch has `prompts` only")
    return parts, prompts


class _Batch:
    def __init__(
        self,
        gateway: Gateway,
        visit: Visit,
        parts: dict[str, bytes],
        prompts: list[bytes],
        model: str | None,
    ) -> None:
        self._gateway = gateway
        self._visit = visit
        self._parts = parts
        self._prompts = prompts
        self._group = gateway.group_for(visit, model)
        self._share = Share(gateway.spec.batch_size)
        self.results: list[Result] = []
        self.usage = dict.fromkeys(_USAGE, 0)

    async def run(self) -> None:
        ready = max(1, len(self._group.serving))
        workers = min(len(self._prompts), self._gateway.spec.batch_size * ready)
        found: dict[int, Result] = {}
        numbered = iter(enumerate(self._prompts))
        async with TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(numbered, found))
        self.results = [{"index": index, **found[index]} for index in range(len(self._prompts))]

    async def _work(self, numbered: Iterator[tuple[int, bytes]], found: dict[int, Result]) -> None:
        for index, prompt in numbered:
            try:
                found[index] = await self._one(prompt)
            except Refusal as refusal:
                why = error_value(refusal.status, refusal.message, refusal.code)
                found[index] = {"error": {**why, "status": refusal.status}}

    async def _one(self, prompt: bytes) -> Result:
        if prompt[:1] != b'"':
            raise Refusal(400, "this prompt is not a text")
        body = engine_body({**self._parts, "prompt": prompt}, self._group.model)
        head = self._visit.exchange.head
        text = prompt[1:-1][:65536].decode("utf-8", "replace")
        request = request_of(head, {"prompt": text}, monotonic())
        call = Call(self._group, COMPLETIONS, body, JSON_FIELDS, lambda: request, share=self._share)
        try:
            instance, answer = await ask_json(self._gateway, call)
        finally:
            call.go_to("")
            self._visit.tries += call.tries
        usage = as_object(answer.get("usage")) or {}
        for name in _USAGE:
            self.usage[name] += as_int(usage.get(name)) or 0
        return {**of_answer(answer), "instance": instance}
