"""Of a long body only what finding an instance needs is read; the engine gets all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.starting import engines, started
from vllmdeploy.gateway.members import elements, spans
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.gateway.wanted import Wanted, read
from vllmdeploy.wire.head import RequestHead

HEAD = RequestHead("POST", "/v1/completions", "", {}, 0, True, 1)
LONG = "word " * 20_000


async def wanted(body: object) -> Wanted:
    return await read(HEAD, json.dumps(body).encode(), 0.0, 64)


@pytest.mark.parametrize("words", [100_000, 2_000_000])
async def test_a_long_body_reaches_the_engine_byte_for_byte(words: int) -> None:
    body = b' {"prompt" : "%b", "model":"m" ,"n": 1} ' % (b"x " * words)
    async with engines(1) as (engine,), started([engine]) as gateway:
        assert (await gateway.ask(body)).status == 200
        assert engine.asked[0].body == body
        assert engine.asked[0].fields["content-length"] == str(len(body))


async def test_of_a_million_tokens_only_the_first_are_read() -> None:
    body = b"[%b]" % b",".join(b"%d" % number for number in range(1_000_000))
    found = await elements(body, 100)
    assert found == [b"%d" % number for number in range(len(found))]
    assert 20 < len(found) < 50


async def test_without_a_limit_all_elements_are_found_and_must_be_whole() -> None:
    assert await elements(b'[1, "b", [2]]') == [b"1", b'"b"', b"[2]"]
    with pytest.raises(ValueError, match="no value at byte 4"):
        await elements(b"[1, ")


async def test_places_of_members_are_told_without_a_copy() -> None:
    body = b'{"a": 1, "b": "two"}'
    places = await spans(body)
    assert {name: body[start:end] for name, (start, end) in places.items()} == {
        "a": b"1",
        "b": b'"two"',
    }


@pytest.mark.parametrize(
    "prompt",
    [LONG, [LONG, "more"], ["a", "b", LONG], list(range(30_000)), [{"a": "b"}] * 8_000],
    ids=["a text", "texts", "texts with a long one last", "tokens", "objects"],
)
async def test_the_beginning_of_a_long_prompt_is_that_of_the_whole(prompt: Any) -> None:
    long = (await wanted({"prompt": prompt, "model": "m", "pad": LONG})).request()
    whole = (await wanted({"prompt": prompt[:7_000], "model": "m"})).request()
    assert long.affinity.prefixes[:1] == whole.affinity.prefixes[:1]


async def test_in_a_long_body_null_is_no_value_of_a_refused_field() -> None:
    assert (await wanted({"prompt": LONG, "chat_template": None, "model": "m"})).model == "m"
    with pytest.raises(Refusal, match="chat_template is not accepted by this gateway"):
        await wanted({"prompt": LONG, "chat_template": "nullify", "model": "m"})


@pytest.mark.parametrize("name", ["n", "best_of", "stream"])
async def test_a_count_too_long_to_be_read_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match=f"{name} is too long"):
        await read(HEAD, b'{"%b": %b}' % (name.encode(), b"1" * 70_000), 0.0, 64)
