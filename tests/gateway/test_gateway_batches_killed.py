"""A gateway that is killed with a batch at work: the next one on its folder ends the batch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.upstream import Asked, FakeEngine

openai: Any = pytest.importorskip("openai")

PATIENCE_S = 60.0
ROWS = 60
ANSWERED_BEFORE_EACH_KILL = (7, 30)


def rows() -> bytes:
    requests = (
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": f"p{number}"}]},
        }
        for number in range(ROWS)
    )
    return "".join(json.dumps(request) + "\n" for request in requests).encode()


@contextlib.asynccontextmanager
async def killed(files: Path, engine: FakeEngine) -> AsyncGenerator[Any]:
    """The official client of a gateway of its own, which is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", "127.0.0.1:0"),
        *("--upstream", engine.url, "--no-canary", "--files", str(files)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        base = f"http://127.0.0.1:{await listening(process)}/v1"
        http = httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S)
        async with openai.AsyncOpenAI(base_url=base, api_key="none", http_client=http) as client:
            yield client
    finally:
        process.kill()
        await process.communicate()


async def listening(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    while True:
        line = await asyncio.wait_for(process.stderr.readline(), PATIENCE_S)
        assert line, "the gateway ended before it listened"
        if found := re.search(rb"listening.*127\.0\.0\.1:(\d+)", line):
            return int(found[1])


async def seen(client: Any, batch: Any, *, completed: int, status: str) -> Any:
    async def look() -> Any:
        while True:
            now = await client.batches.retrieve(batch.id)
            if (now.request_counts.completed, now.status) == (completed, status):
                return now
            await asyncio.sleep(0.02)

    return await asyncio.wait_for(look(), PATIENCE_S)


async def made(client: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", rows()), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def prompt(asked: Asked) -> str:
    text: str = asked.json["messages"][0]["content"]
    return text


async def nobody_left(engine: FakeEngine) -> None:
    """What the dead gateway had sent has come, and counts for it."""

    async def look() -> None:
        while engine.open:  # noqa: ASYNC110 - it has no such event
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), PATIENCE_S)


async def test_a_batch_outlives_gateways_that_are_killed_and_asks_no_answered_row_again(
    tmp_path: Path,
) -> None:
    engine = await FakeEngine(model="m").start()
    answered: dict[str, int] = {}
    batch: Any = None
    try:
        for completed in ANSWERED_BEFORE_EACH_KILL:
            first = len(engine.asked)
            last = first + completed - len(answered)
            engine.mode = lambda number, last=last: "ok" if number <= last else "stall"
            async with killed(tmp_path, engine) as client:
                batch = batch or await made(client)
                await seen(client, batch, completed=completed, status="in_progress")
            await nobody_left(engine)
            answered |= {prompt(engine.asked[at]): at for at in range(first, last)}
        engine.mode = "ok"
        async with killed(tmp_path, engine) as client:
            ended = await seen(client, batch, completed=ROWS, status="completed")
            output = (await client.files.content(ended.output_file_id)).text.splitlines()
    finally:
        await engine.stop()
    names = sorted(json.loads(line)["custom_id"] for line in output)
    assert names == sorted(f"row-{number}" for number in range(ROWS))
    assert ended.request_counts.failed == 0
    assert len(answered) == ANSWERED_BEFORE_EACH_KILL[-1]
    for at, one in enumerate(map(prompt, engine.asked)):
        assert at <= answered.get(one, at), f"{one} was answered already"
