"""An OpenAI upstream that answers at once: prints its port, then serves."""

from __future__ import annotations

import asyncio
import sys

_BODY = (
    b'{"id":"chatcmpl-0","object":"chat.completion","model":"fake","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"yes"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,'
    b'"completion_tokens":1,"total_tokens":10}}'
)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_LENGTH = b"content-length: "


class Fake(asyncio.Protocol):
    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            at = head.find(_LENGTH)
            length = 0
            if at >= 0:
                length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
            if len(data) < end + 4 + length:
                break
            data = data[end + 4 + length :]
            self._transport.write(_ANSWER)  # type: ignore[attr-defined]  # a socket's transport
        self._data = data


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Fake, "127.0.0.1", 0)
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
