"""The client for code without an event loop; any number of threads may use one."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from vllmdeploy.client.answers import Answer
from vllmdeploy.client.asynchronous import AsyncMultiVLLMClient
from vllmdeploy.client.background import Background
from vllmdeploy.client.options import ClientOptions, Prompt, urls_of
from vllmdeploy.client.session import Status
from vllmdeploy.client.streams import AsyncRawResponse, AsyncStream
from vllmdeploy.routing.upstream import Upstream

T = TypeVar("T")
_END = object()


class MultiVLLMClient:
    """Several vLLM servers as if they were one, with the openai SDK's calls.

        client = MultiVLLMClient(["http://localhost:8001/v1", "http://localhost:8002/v1"])
        answer = client.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}])
        print(answer.choices[0].message.content)

    Options: routing, scheduling, api_key, timeout, max_inflight, thresholds.
    """

    def __init__(
        self,
        base_urls: str | Iterable[str],
        options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
        **changes: Any,
    ) -> None:
        self._inner = AsyncMultiVLLMClient(base_urls, options, **changes)
        self._background = Background()
        # Also for those who never close it: at the end of the program, or when it is forgotten.
        weakref.finalize(self, self._background.close, self._inner.close)
        self.chat = Chat(self._inner, self._background)
        self.completions = self._endpoint("/v1/completions")
        self.embeddings = self._endpoint("/v1/embeddings")
        self.rerank = self._endpoint("/v1/rerank")
        self.score = self._endpoint("/v1/score")
        self.models = Models(self._inner, self._background)

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        return self._inner.upstreams

    @property
    def api_key(self) -> str:
        return self._inner.api_key

    def status(self) -> Status:
        async def status() -> Status:
            return self._inner.status()

        return self._background.run(status())

    def map(
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
        return self._background.run(
            # All of them first: a generator of the caller's must not run in our loop's thread.
            self._inner.map(list(prompts), max_workers, return_errors=return_errors, **fields)
        )

    def close(self) -> None:
        self._background.close(self._inner.close)

    def __enter__(self) -> MultiVLLMClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _endpoint(self, path: str) -> Endpoint:
        return Endpoint(self._inner, self._background, path)


class Endpoint:
    def __init__(self, inner: AsyncMultiVLLMClient, background: Background, path: str) -> None:
        self._inner = inner
        self._background = background
        self._path = path

    @overload
    def create(self, *, stream: Literal[True], **fields: Any) -> Stream: ...
    @overload
    def create(self, *, stream: Literal[False] = False, **fields: Any) -> Answer: ...
    def create(self, *, stream: bool = False, **fields: Any) -> Answer | Stream:
        if stream:
            return Stream(self._background.run(self._stream(fields)), self._background)
        return self._background.run(self._answer(fields))

    @property
    def with_streaming_response(self) -> RawEndpoint:
        return RawEndpoint(self._inner, self._background, self._path)

    async def _answer(self, fields: dict[str, Any]) -> Answer:
        return await self._inner.session().answer(self._path, fields)

    async def _stream(self, fields: dict[str, Any]) -> AsyncStream:
        return await self._inner.session().stream(self._path, fields)


class Chat:
    def __init__(self, inner: AsyncMultiVLLMClient, background: Background) -> None:
        self.completions = Endpoint(inner, background, "/v1/chat/completions")


class Models:
    def __init__(self, inner: AsyncMultiVLLMClient, background: Background) -> None:
        self._inner = inner
        self._background = background

    def list(self) -> Answer:
        return self._background.run(self._inner.models.list())


class Stream:
    """`for chunk in stream`; leaving early, or `close`, makes the engine stop too."""

    def __init__(self, inner: AsyncStream, background: Background) -> None:
        self._inner = inner
        self._background = background
        self.response = RawResponse(inner.response, background)

    @property
    def instance(self) -> str:
        return self._inner.instance

    def __iter__(self) -> Iterator[Answer]:
        return self

    def __next__(self) -> Answer:
        try:
            return self._background.run(self._inner.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._background.run(self._inner.close())


class RawEndpoint:
    def __init__(self, inner: AsyncMultiVLLMClient, background: Background, path: str) -> None:
        self._inner = inner
        self._background = background
        self._path = path

    @contextmanager
    def create(self, **fields: Any) -> Generator[RawResponse, None, None]:
        response = RawResponse(self._background.run(self._open(fields)), self._background)
        try:
            yield response
        finally:
            response.close()

    async def _open(self, fields: dict[str, Any]) -> AsyncRawResponse:
        return AsyncRawResponse(await self._inner.session().raw(self._path, fields))


class RawResponse:
    def __init__(self, inner: AsyncRawResponse, background: Background) -> None:
        self._inner = inner
        self._background = background
        self.status_code = inner.status_code
        self.headers = inner.headers
        self.instance = inner.instance

    def iter_bytes(self) -> Iterator[bytes]:
        return self._iterate(self._inner.iter_bytes())

    def iter_text(self) -> Iterator[str]:
        return self._iterate(self._inner.iter_text())

    def iter_lines(self) -> Iterator[str]:
        return self._iterate(self._inner.iter_lines())

    def read(self) -> bytes:
        return self._background.run(self._inner.read())

    def text(self) -> str:
        return self._background.run(self._inner.text())

    def json(self) -> Any:
        return self._background.run(self._inner.json())

    def parse(self) -> Answer | Stream:
        parsed = self._background.run(self._inner.parse())
        return Stream(parsed, self._background) if isinstance(parsed, AsyncStream) else parsed

    def close(self) -> None:
        self._background.run(self._inner.close())

    def _iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                item = self._background.run(_next(items))
                if item is _END:
                    return
                yield item  # type: ignore[misc]  # it is not the end, so it is a T
        finally:
            self._background.run(items.aclose())


async def _next(items: AsyncGenerator[T, None]) -> T | object:
    return await anext(items, _END)


def create_multi_vllm_client(
    ports: Iterable[int] | None = None, host: str | None = None, **options: Any
) -> MultiVLLMClient:
    """One server for each port. Without ports or host: VLLM_PORTS, VLLM_HOST, else 8001 to 8004
    on this machine."""
    return MultiVLLMClient(urls_of(ports, host), **options)
