"""The openai SDK's own calls, made by our client over several engines and by the SDK on the first.

    python -m tests.rig.sdk_calls MODEL URL...

Prints one JSON object: what differs between the two, how long a call took, who was asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

from tests.support.openai_sdk import openai
from vllmdeploy import AsyncMultiVLLMClient, MultiVLLMClient

_ASKED = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
_SUCCEEDED = re.compile(r"^vllm:request_success_total\{[^}]*\} ([0-9.]+)$", re.MULTILINE)


def seen(client: Any, model: str) -> dict[str, object]:
    """What a program that uses the SDK reads."""
    same: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 12}
    chat = client.chat.completions.create(messages=_ASKED, **same)
    text = client.completions.create(prompt="The capital of France is", **same)
    stream = client.chat.completions.create(messages=_ASKED, stream=True, **same)
    said = [one.choices[0].delta.content for one in stream if one.choices]
    with client.chat.completions.with_streaming_response.create(
        messages=_ASKED, **same
    ) as response:
        raw = (response.status_code, response.headers.get("content-type"))
        parsed = response.parse().choices[0].message.content
    return {
        "chat": (chat.choices[0].message.content, chat.choices[0].finish_reason, chat.object),
        "usage": (chat.usage.prompt_tokens, chat.usage.completion_tokens),
        "completion": (text.choices[0].text, text.model),
        "stream": "".join(filter(None, said)),
        "raw": (raw, parsed),
        "models": [one.id for one in client.models.list().data],
        "unknown model": _refused(client),
    }


def _refused(client: Any) -> tuple[str, int]:
    try:
        client.chat.completions.create(model="no-such", messages=_ASKED)
    except Exception as error:  # each client has its own class of that name
        return type(error).__name__, int(getattr(error, "status_code", 0))
    return "", 200


async def _asynchronous(urls: Sequence[str], model: str) -> str:
    async with AsyncMultiVLLMClient(urls) as client:
        answer = await client.chat.completions.create(
            model=model, messages=_ASKED, temperature=0, max_tokens=12
        )
        return str(answer.choices[0].message.content)


def _succeeded(url: str) -> float:
    """How many requests an engine says it has answered."""
    page = urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=10).read()
    return sum(map(float, _SUCCEEDED.findall(page.decode())))


def main(model: str, urls: Sequence[str]) -> None:
    with openai.OpenAI(base_url=urls[0], api_key="none") as bare:
        theirs = seen(bare, model)
    with MultiVLLMClient(urls, routing="round_robin") as ours:
        mine = seen(ours, model)
        before = [_succeeded(url) for url in urls]
        prompts = ["The capital of France is"] * (4 * len(urls))
        answers = ours.map(prompts, model=model, temperature=0, max_tokens=4)
        after = [_succeeded(url) for url in urls]
    found = {
        "differs": {key: (mine[key], theirs[key]) for key in theirs if mine[key] != theirs[key]},
        "chat": mine["chat"],
        "asynchronous": asyncio.run(_asynchronous(urls, model)),
        "mapped": len(answers),
        "each": [int(now - then) for then, now in zip(before, after, strict=True)],
    }
    print(json.dumps(found))  # noqa: T201  # the answer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
