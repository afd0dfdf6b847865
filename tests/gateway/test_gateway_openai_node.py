"""The official openai SDK for Node.js, where npm can bring it, reads what we answer and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import openai_node
from tests.support.running_gateway import served, write

KEY = "sk-node-00001"
CALLS = """
    const messages = [{ role: "user", content: "Hello!" }];
    const chat = await client.chat.completions.create({ model: "m", messages });
    const pieces = [];
    const chunks = await client.chat.completions.create({ model: "m", messages, stream: true });
    for await (const chunk of chunks) pieces.push(chunk.choices[0]?.delta?.content ?? "");
    const listed = [];
    for await (const one of client.models.list()) listed.push(one.id);
    const text = await client.completions.create({ model: "m", prompt: "x" });
    return { chat: chat.choices[0].message.content, pieces, listed, text: text.choices[0].text };
"""
ERRORS = """
    const seen = {};
    const failing = async (name, call) => {
        try { await call(); seen[name] = "none"; }
        catch (error) { seen[name] = [error.constructor.name, error.status, error.code]; }
    };
    const prompt = "x";
    const stranger = client.withOptions({ apiKey: "sk-nobodys-key" });
    await failing("key", () => stranger.models.list());
    await failing("model", () => client.completions.create({ model: "other", prompt }));
    await failing("n", () => client.completions.create({ model: "m", prompt, n: 1000000 }));
    return seen;
"""
BROKEN = """
    try {
        const stream = await client.completions.create({ model: "m", prompt: "x", stream: true });
        for await (const chunk of stream) { }
        return "came to its end";
    } catch (error) { return [error instanceof OpenAI.APIError, error.message]; }
"""


@pytest.mark.timeout(300)
async def test_the_sdk_for_node_reads_answers_streams_errors_and_breaks(tmp_path: Path) -> None:
    if reason := openai_node.why_not():
        pytest.skip(reason)
    keys = tmp_path / "keys"
    write(keys, f"ann:{KEY}\n")
    async with served("--api-keys-file", str(keys)) as (api, (engine,)):
        url = str(api.client.base_url.join("/v1"))
        found = await openai_node.run(CALLS, url, KEY)
        assert found["chat"] == "Hello!!"
        assert "".join(found["pieces"])
        assert found["listed"] == ["m"]
        assert found["text"] == "x!"
        assert await openai_node.run(ERRORS, url, KEY) == {
            "key": ["AuthenticationError", 401, "invalid_api_key"],
            "model": ["NotFoundError", 404, "model_not_found"],
            "n": ["BadRequestError", 400, "bad_request"],
        }
        for engine.mode in ("cut", "no_done"):
            told, message = await openai_node.run(BROKEN, url, KEY)
            assert told
            assert "the instance stopped answering" in message
