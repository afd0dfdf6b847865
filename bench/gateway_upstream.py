"""An engine that does nothing but answer, and that as fast as Python can: the upstream of
bench/gateway.py. Prints its port, then serves.

A body with `"chunks"` gets a stream of so many events, each a write of its own, `"every_ms"`
apart; anything else the same short answer at once. After SIGUSR1 it hangs: it still says that it is
healthy, and answers nothing else.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import cast

_MODELS = b'{"object":"list","data":[{"id":"fake","object":"model","max_model_len":4096}]}'
_BODY = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1,"model":"fake","choices":[{"index":'
    b'0,"message":{"role":"assistant","content":"yes"},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
)
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"fake",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_LENGTH = b"content-length: "


def answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


def short_answers() -> dict[str, str]:
    """What is answered on each path, for an upstream that is not this program."""
    pages = {"/health": "", "/metrics": "", "/v1/models": _MODELS.decode()}
    return {**pages, **dict.fromkeys(("/v1/chat/completions", "/v1/completions"), _BODY.decode())}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ANSWER = answer(_BODY)
_PAGES = {b"/health": answer(b""), b"/v1/models": answer(_MODELS), b"/metrics": answer(b"")}
_ONE = chunk(_EVENT)
_LAST = chunk(_DONE) + b"0\r\n\r\n"


class Fake(asyncio.Protocol):
    hangs = False

    def __init__(self) -> None:
        self._held = bytearray()
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        while len(self._held) >= self._wanted:
            end = self._held.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._held[:end]).lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self._wanted = end + 4 + length
            if len(self._held) < self._wanted:
                return
            body = bytes(self._held[end + 4 : self._wanted])
            del self._held[: self._wanted]
            self._wanted = 0
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get "):
            self._transport.write(_PAGES.get(head.split(b" ", 2)[1], _ANSWER))
        elif Fake.hangs:
            return
        elif len(body) < 4096 and b'"chunks"' in body:
            asked = json.loads(body)
            self._transport.write(_STREAM)
            self._next(int(asked["chunks"]), asked["every_ms"] / 1000)
        else:
            self._transport.write(_ANSWER)

    def _next(self, left: int, every_s: float) -> None:
        if self._transport.is_closing():
            return
        if not left:
            self._transport.write(_LAST)
            return
        self._transport.write(_ONE)
        asyncio.get_running_loop().call_later(every_s, self._next, left - 1, every_s)


def hang() -> None:
    Fake.hangs = True


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, hang)
    server = await loop.create_server(Fake, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
    sys.exit(0)
