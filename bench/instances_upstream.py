"""A fake vLLM instance: so many sequences at once, each token a fixed time. Prints its port."""

from __future__ import annotations

import asyncio
import json
import sys


class Instance:
    def __init__(self, sequences: int, seconds: float) -> None:
        self._places = asyncio.Semaphore(sequences)
        self._seconds = seconds

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, _, after = head.partition(b"content-length: ")
                length = int(after.split(b"\r\n", 1)[0]) if after else 0
                await reader.readexactly(length)
                body = await self._answer(head)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%b" % (len(body), body)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        if head.startswith(b"get /v1/models"):
            return b'{"object":"list","data":[{"id":"fake","object":"model"}]}'
        if head.startswith(b"get "):
            return b""
        async with self._places:
            await asyncio.sleep(self._seconds)
        message = {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        shown = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": "fake"}
        return json.dumps({**shown, "choices": [choice], "usage": usage}).encode()


async def main(sequences: int, seconds: float) -> None:
    instance = Instance(sequences, seconds)
    server = await asyncio.start_server(instance.serve, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
