from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from vllmdeploy.node.probe import Answer, ask, tcp_problem


@asynccontextmanager
async def answering(raw: bytes, heard: list[bytes] | None = None) -> AsyncGenerator[int, None]:
    """A server that says the same to everyone and hangs up, or keeps silent when told nothing."""
    quiet = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(65_536)
        if heard is not None:
            heard.append(request)
        if not raw:
            await quiet.wait()
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        quiet.set()
        server.close()
        await server.wait_closed()


async def test_a_get_and_its_answer() -> None:
    heard: list[bytes] = []
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    async with answering(raw, heard) as port:
        url = f"http://127.0.0.1:{port}/api?a=1"
        assert await ask(url, limit_s=5, headers={"Authorization": "Bearer t"}) == Answer(200, "ok")
    assert heard == [
        f"GET /api?a=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        "Authorization: Bearer t\r\n\r\n".encode()
    ]


async def test_a_body_makes_it_a_post() -> None:
    heard: list[bytes] = []
    async with answering(b"HTTP/1.1 503 Busy\r\n\r\n", heard) as port:
        assert await ask(f"http://127.0.0.1:{port}", limit_s=5, body='{"é": 1}') == Answer(503)
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST / HTTP/1.1\r\n")
    assert head.endswith(b"Content-Type: application/json\r\nContent-Length: 9")
    assert body == '{"é": 1}'.encode()


async def test_a_chunked_answer_is_put_together() -> None:
    raw = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    )
    async with answering(raw) as port:
        assert await ask(f"http://127.0.0.1:{port}/", limit_s=5) == Answer(200, "abcde")


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP answer: SSH-2.0-OpenSSH_9.2"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP answer: invalid literal"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "not an HTTP answer: invalid literal",
        ),
    ],
)
async def test_what_is_not_http_is_said(raw: bytes, detail: str) -> None:
    async with answering(raw) as port:
        answer = await ask(f"http://127.0.0.1:{port}/", limit_s=5)
    assert answer.status == 0
    assert answer.detail.startswith(detail)


async def test_silence_and_refusal_are_told_apart() -> None:
    async with answering(b"") as port:
        url = f"http://127.0.0.1:{port}/"
        assert await ask(url, limit_s=0.1) == Answer(0, detail="no answer within 0.1 s")
        assert await tcp_problem("127.0.0.1", port, limit_s=5) == ""
    assert await ask(url, limit_s=5) == Answer(0, detail="connection refused")
    assert await tcp_problem("127.0.0.1", port, limit_s=5) == "connection refused"
