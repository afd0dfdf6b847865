"""The client for code with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Literal, overload

from vllmdeploy.client.answers import Answer
from vllmdeploy.client.options import ClientOptions, Prompt, bodies_of, spec_of
from vllmdeploy.client.session import Session, Status
from vllmdeploy.client.streams import AsyncRawResponse, AsyncStream
from vllmdeploy.routing.upstream import Upstream


class AsyncMultiVLLMClient:
    """Several vLLM servers as if they were one, with the openai SDK's calls."""

    def __init__(
        self,
        base_urls: str | Iterable[str],
        options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
        **changes: Any,
    ) -> None:
        self._spec = spec_of(base_urls, options, changes)
        self._session: Session | None = None
        self.chat = AsyncChat(self)
        self.completions = AsyncEndpoint(self, "/v1/completions")
        self.embeddings = AsyncEndpoint(self, "/v1/embeddings")
        self.rerank = AsyncEndpoint(self, "/v1/rerank")
        self.score = AsyncEndpoint(self, "/v1/score")
        self.models = AsyncModels(self)

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        return self._spec.upstreams

    @property
    def api_key(self) -> str:
        return self._spec.key

    def session(self) -> Session:
        """Of the loop that runs: a client made once may be used in one `asyncio.run` after
        another."""
        if self._session is None or self._session.loop is not asyncio.get_running_loop():
            self._session = Session(self._spec)
        return self._session

    def status(self) -> Status:
        return self.session().status()

    async def map(
        self,
        prompts: Iterable[Prompt],
        max_workers: int | None = None,
        *,
        return_errors: bool = False,
        **fields: Any,
    ) -> list[Any]:
        """A chat completion for each prompt, or list of messages, in their order.

        With `return_errors` an error stands in the place of its answer; without, it ends the call.
        """
        return await self.session().map(
            "/v1/chat/completions",
            bodies_of(prompts, fields),
            max_workers=max_workers,
            return_errors=return_errors,
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.loop is asyncio.get_running_loop():
            await session.close()

    async def __aenter__(self) -> AsyncMultiVLLMClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncEndpoint:
    def __init__(self, client: AsyncMultiVLLMClient, path: str) -> None:
        self._client = client
        self._path = path

    @overload
    async def create(self, *, stream: Literal[True], **fields: Any) -> AsyncStream: ...
    @overload
    async def create(self, *, stream: Literal[False] = False, **fields: Any) -> Answer: ...
    async def create(self, *, stream: bool = False, **fields: Any) -> Answer | AsyncStream:
        session = self._client.session()
        if stream:
            return await session.stream(self._path, fields)
        return await session.answer(self._path, fields)

    @property
    def with_streaming_response(self) -> AsyncRawEndpoint:
        return AsyncRawEndpoint(self._client, self._path)


class AsyncRawEndpoint:
    def __init__(self, client: AsyncMultiVLLMClient, path: str) -> None:
        self._client = client
        self._path = path

    @asynccontextmanager
    async def create(self, **fields: Any) -> AsyncGenerator[AsyncRawResponse, None]:
        response = AsyncRawResponse(await self._client.session().raw(self._path, fields))
        try:
            yield response
        finally:
            await response.close()


class AsyncChat:
    def __init__(self, client: AsyncMultiVLLMClient) -> None:
        self.completions = AsyncEndpoint(client, "/v1/chat/completions")


class AsyncModels:
    def __init__(self, client: AsyncMultiVLLMClient) -> None:
        self._client = client

    async def list(self) -> Answer:
        return await self._client.session().models()


def create_async_multi_vllm_client(
    ports: Sequence[int], host: str = "localhost", **options: Any
) -> AsyncMultiVLLMClient:
    return AsyncMultiVLLMClient([f"http://{host}:{port}/v1" for port in ports], **options)
