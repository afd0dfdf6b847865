"""Beside the real openai SDK: the same calls read the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_engine import MODEL, engines
from tests.support.openai_sdk import openai
from vllmdeploy import MultiVLLMClient
from vllmdeploy.client import errors

HELLO = [{"role": "user", "content": "Hello!"}]


def read(client: Any) -> list[object]:
    chat = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0.7)
    text = client.completions.create(model=MODEL, prompt="x", max_tokens=5)
    vector = client.embeddings.create(model=MODEL, input="x", encoding_format="float")
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO
    ) as response:
        raw = (response.status_code, response.headers.get("content-type"), response.read())
        parsed = response.parse().choices[0].message.content
    return [
        *(chat.id, chat.model, chat.object, chat.choices[0].message.content),
        *(chat.choices[0].message.role, chat.choices[0].message.tool_calls),
        *(chat.choices[0].finish_reason, chat.choices[0].logprobs, chat.usage.total_tokens),
        *(text.choices[0].text, text.usage.prompt_tokens, vector.data[0].embedding),
        [chunk.choices[0].delta.content for chunk in stream if chunk.choices],
        *(raw, parsed, [model.id for model in client.models.list().data]),
    ]


def test_our_client_and_the_sdk_read_the_same_answers() -> None:
    with engines(1) as fleet, MultiVLLMClient(fleet[0].url) as ours:
        theirs = openai.OpenAI(base_url=fleet[0].url, api_key="x")
        assert read(ours) == read(theirs)
        theirs.close()
        mine, other = fleet[0].asked[: len(fleet[0].asked) // 2], fleet[0].asked[5:]
        assert mine == other


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_our_errors_are_named_as_the_sdks(status: int) -> None:
    with engines(1) as fleet, MultiVLLMClient(fleet[0].url) as ours:
        fleet[0].mode = status
        theirs = openai.OpenAI(base_url=fleet[0].url, api_key="x", max_retries=0)
        with pytest.raises(errors.APIStatusError) as mine:
            ours.completions.create(model=MODEL, prompt="x")
        with pytest.raises(openai.APIStatusError) as other:
            theirs.completions.create(model=MODEL, prompt="x")
        theirs.close()
    assert type(mine.value).__name__ == type(other.value).__name__
    assert mine.value.status_code == other.value.status_code
