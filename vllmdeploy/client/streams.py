"""Streams of events and raw responses, for callers inside an event loop."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Any

from vllmdeploy.client.answers import Answer, answer_of
from vllmdeploy.client.errors import APIConnectionError, APIError, status_error
from vllmdeploy.client.exchange import Exchange
from vllmdeploy.client.sse import Events
from vllmdeploy.routing.failure import Failure


class AsyncStream:
    """`async for chunk in stream`. One that ends before its `[DONE]` is an error, not an end."""

    def __init__(self, exchange: Exchange) -> None:
        self.response = AsyncRawResponse(exchange)
        self._exchange = exchange
        self._chunks = self._read()

    @property
    def instance(self) -> str:
        return self._exchange.instance

    def __aiter__(self) -> AsyncIterator[Answer]:
        return self._chunks

    async def __anext__(self) -> Answer:
        return await self._chunks.__anext__()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leaving early closes the connection, so that the engine stops too."""
        await self._chunks.aclose()
        self._exchange.close(whole=False)

    async def _read(self) -> AsyncGenerator[Answer, None]:
        events = Events()
        done = False
        try:
            async with aclosing(self._exchange.pieces()) as pieces:
                async for piece in pieces:
                    for data in events.feed(piece):
                        if data == b"[DONE]":
                            done = True
                        else:
                            yield self._chunk(data)
            if not done:
                raise self._broken("the stream ended before its [DONE]")
            self._exchange.close()
        except ValueError as error:
            raise self._broken(str(error)) from error
        finally:
            self._exchange.close(whole=False)

    def _chunk(self, data: bytes) -> Answer:
        chunk = answer_of(data)
        if "error" in chunk:
            # After the first byte an engine can say what went wrong only in here.
            self._exchange.close(Failure.STREAM_ERROR)
            code: Any = chunk.error["code"] if isinstance(chunk.error, Answer) else 500
            raise status_error(self.instance, code if isinstance(code, int) else 500, data)
        return chunk

    def _broken(self, words: str) -> APIError:
        self._exchange.close(Failure.STREAM_ERROR)
        return APIConnectionError(f"{self.instance}: {words}")


class AsyncRawResponse:
    """The answer as it came: status, headers, and the body in the form one asks for."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._body: bytes | None = None

    @property
    def status_code(self) -> int:
        return self._exchange.status

    @property
    def headers(self) -> dict[str, str]:
        return self._exchange.headers

    @property
    def instance(self) -> str:
        return self._exchange.instance

    async def iter_bytes(self) -> AsyncGenerator[bytes, None]:
        if self._body is not None:
            yield self._body
            return
        try:
            async with aclosing(self._exchange.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
            self._exchange.close()
        finally:
            self._exchange.close(whole=False)

    async def iter_text(self) -> AsyncGenerator[str, None]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        async with aclosing(self.iter_bytes()) as pieces:
            async for piece in pieces:
                text = decoder.decode(piece)
                if text:
                    yield text
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest

    async def iter_lines(self) -> AsyncGenerator[str, None]:
        rest = ""
        async with aclosing(self.iter_text()) as texts:
            async for text in texts:
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    yield line.removesuffix("\r")
        if rest:
            yield rest

    async def read(self) -> bytes:
        if self._body is None:
            self._body = b"".join([piece async for piece in self.iter_bytes()])
        return self._body

    async def text(self) -> str:
        return (await self.read()).decode("utf-8", "replace")

    async def json(self) -> Any:
        return json.loads(await self.read())

    async def parse(self) -> Answer | AsyncStream:
        """What `create` would have given."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return AsyncStream(self._exchange)
        return answer_of(await self.read())

    async def close(self) -> None:
        self._exchange.close(whole=False)
