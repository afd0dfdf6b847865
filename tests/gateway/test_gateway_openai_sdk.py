"""The official openai SDK, as people use it, against a gateway before engines on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import MODEL, FakeEngine, engines
from tests.support.openai_sdk import openai
from tests.support.running_gateway import Api, gateway, served, write

KEY = "sk-sdk-000001"
HELLO = [{"role": "user", "content": "Hello!"}]
_PATIENCE_S = 20.0


def address(api: Api) -> str:
    return str(api.client.base_url.join("/v1"))


@asynccontextmanager
async def fronted(*options: str) -> AsyncGenerator[tuple[Api, FakeEngine]]:
    """A gateway before one engine, which lives in a thread of its own."""
    with engines(1) as (engine,):
        async with gateway("--upstream", engine.url.removesuffix("/v1"), *options) as api:
            await api.until_ready(1)
            yield api, engine


@asynccontextmanager
async def sdk(api: Api, **options: Any) -> AsyncGenerator[Any]:
    given = {"base_url": address(api), "api_key": KEY, "max_retries": 0, **options}
    async with openai.AsyncOpenAI(**given) as client:
        yield client


async def called(api: Api, calls: Callable[[Any], Any]) -> Any:
    """With the synchronous client, in a thread: the gateway lives in this loop."""

    def talk() -> Any:
        with openai.OpenAI(base_url=address(api), api_key=KEY, max_retries=0) as client:
            return calls(client)

    return await asyncio.wait_for(asyncio.to_thread(talk), _PATIENCE_S)


async def test_answers_of_each_kind_are_read() -> None:
    async with fronted() as (api, engine), sdk(api) as client:
        chat = await client.chat.completions.create(model=MODEL, messages=HELLO)
        text = await client.completions.create(model=MODEL, prompt="x", max_tokens=5)
        vector = await client.embeddings.create(model=MODEL, input="x", encoding_format="float")
        listed = [one.id async for one in client.models.list()]
        card = await client.models.retrieve(MODEL)
        assert chat.choices[0].message.content == f"Hello from {engine.name}: Hello!"
        assert (chat.object, chat.usage.total_tokens) == ("chat.completion", 7)
        assert (text.choices[0].text, text.usage.prompt_tokens) == (f"Hello from {engine.name}", 3)
        assert vector.data[0].embedding == [0.5, 0.25]
        assert (listed, card.id, card.owned_by) == ([MODEL], MODEL, "vllm")
        assert all("authorization" not in fields for fields in engine.headers)


async def test_streams_are_read_event_by_event_to_their_usage() -> None:
    async with fronted() as (api, engine), sdk(api) as client:
        asked = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}}
        chunks = [
            one async for one in await client.chat.completions.create(messages=HELLO, **asked)
        ]
        texts = [one async for one in await client.completions.create(prompt="x", **asked)]
        said = [choice.delta.content for chunk in chunks for choice in chunk.choices]
        assert said == ["Hel", "lo ", engine.name]
        assert [one.text for chunk in texts for one in chunk.choices] == said
        assert chunks[-1].usage.total_tokens == texts[-1].usage.total_tokens == 6


async def test_the_synchronous_client_reads_the_same() -> None:
    def calls(client: Any) -> list[Any]:
        chat = client.chat.completions.create(model=MODEL, messages=HELLO)
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        said = [one.delta.content for chunk in stream for one in chunk.choices]
        return [chat.choices[0].message.content, said, client.models.retrieve(MODEL).id]

    async with fronted() as (api, engine):
        hello = f"Hello from {engine.name}: Hello!"
        assert await called(api, calls) == [hello, ["Hel", "lo ", engine.name], MODEL]


async def test_raw_and_streamed_responses_show_the_gateways_fields() -> None:
    async with fronted() as (api, engine), sdk(api) as client:
        fields = {"x-request-id": "mine-1"}
        asked = {"model": MODEL, "messages": HELLO, "extra_headers": fields}
        raw = await client.chat.completions.with_raw_response.create(**asked)
        assert (raw.status_code, raw.headers["x-request-id"]) == (200, "mine-1")
        assert raw.parse().choices[0].message.content.endswith("Hello!")
        plain = await client.chat.completions.create(**asked)
        assert plain._request_id == "mine-1"
        streamed = client.chat.completions.with_streaming_response.create(**asked)
        async with streamed as response:
            assert response.headers["content-type"] == "application/json"
            assert (await response.parse()).usage.total_tokens == 7
        assert all("x-request-id" not in one for one in engine.headers)


async def test_what_the_gateway_refuses_has_the_sdks_own_names(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY} models={MODEL}\nbob:sk-once-00002 per_minute=1\n")
    async with fronted("--api-keys-file", str(keys)) as (api, engine):
        async with sdk(api, api_key="sk-nobodys-key") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.models.list()
            assert caught.value.code == "invalid_api_key"
        async with sdk(api) as client:
            complete = client.completions.create
            with pytest.raises(openai.NotFoundError) as caught:
                await complete(model="other", prompt="x")
            assert caught.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError, match="n must be from 1 to 64"):
                await complete(model=MODEL, prompt="x", n=1_000_000)
            engine.mode = 400
            with pytest.raises(openai.BadRequestError, match="says 400"):
                await complete(model=MODEL, prompt="x")
        engine.mode = "ok"
        async with sdk(api, api_key="sk-once-00002") as client:
            await client.completions.create(model=MODEL, prompt="x")
            with pytest.raises(openai.RateLimitError, match="1 requests a minute") as caught:
                await client.completions.create(model=MODEL, prompt="x")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61


async def test_a_model_that_is_not_the_keys_is_a_denied_permission(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY} models=a\n")
    async with served("--api-keys-file", str(keys), models=("a", "b")) as (api, (_, b)):
        async with sdk(api) as client:
            assert [one.id async for one in client.models.list()] == ["a"]
            for call in (
                client.models.retrieve("b"),
                client.completions.create(model="b", prompt="x"),
            ):
                with pytest.raises(openai.PermissionDeniedError):
                    await call
        assert b.asked == []


async def test_no_instance_is_an_error_that_the_sdk_tries_again() -> None:
    async with served() as (api, (engine,)), sdk(api) as client:
        engine.health = 500
        await api.until_health(503)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="m", prompt="x")
        assert (caught.value.status_code, caught.value.code) == (503, "no_instance")
        assert caught.value.response.headers["retry-after"] == "2"


@pytest.mark.parametrize("mode", ["429", "409"])
async def test_the_sdks_own_retries_come_through(mode: str) -> None:
    async with served() as (api, (engine,)), sdk(api, max_retries=1) as client:
        engine.mode = lambda number: mode if number == 1 else "ok"
        answer = await client.completions.create(model="m", prompt="x")
        assert answer.choices[0].text == "x!"
        assert len(engine.asked) == 2


@pytest.mark.parametrize("mode", ["cut", "no_done"])
async def test_a_stream_that_breaks_is_an_exception_and_no_short_answer(mode: str) -> None:
    async with served() as (api, (engine,)), sdk(api) as client:
        engine.mode = mode
        stream = await client.completions.create(model="m", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="the instance stopped answering"):
            async for _ in stream:
                pass


async def test_an_engine_stops_when_the_sdk_closes_its_stream() -> None:
    async with served() as (api, (engine,)), sdk(api) as client:
        engine.mode = "hang"
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        first = await stream.__anext__()
        assert first.choices[0].delta.content
        await stream.close()

        async def let_go() -> bool:
            return engine.left == 1

        await api.until(let_go)
