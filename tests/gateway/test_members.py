"""Looking for members of a JSON object finds what reading it all would find."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.gateway.members import NotJson, compose, elements, members

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # what JSON has no word for is refused
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TRICKY = st.text(alphabet='\\"[]{}:, \n\té€😀')


@given(st.dictionaries(st.text() | TRICKY, JSON | TRICKY, max_size=6), st.booleans(), st.booleans())
def test_members_are_those_of_the_whole(value: dict[str, object], plain: bool, wide: bool) -> None:
    body = json.dumps(value, ensure_ascii=plain, indent=2 if wide else None)
    found = asyncio.run(members(body.encode("utf-8", "surrogatepass")))
    assert {name: json.loads(raw) for name, raw in found.items()} == value
    assert json.loads(compose(found)) == value


@given(st.lists(JSON | TRICKY, max_size=6))
def test_elements_are_those_of_the_whole(value: list[object]) -> None:
    found = asyncio.run(elements(json.dumps(value).encode()))
    assert [json.loads(raw) for raw in found] == value


@given(st.binary(max_size=60))
def test_what_is_not_an_object_is_refused_or_read_alike(data: bytes) -> None:
    try:
        found = asyncio.run(members(b"{" + data + b"}"))
    except NotJson:
        return
    assert compose(found).startswith(b"{")


def test_the_last_of_a_name_counts_as_in_the_engine() -> None:
    body = rb'{"model":"a","m\u006fdel":"b"}'
    assert asyncio.run(members(body)) == {"model": b'"b"'}
    assert json.loads(body) == {"model": "b"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,}', '{"a":1}x', "{a:1}", '{"a":tru}'),
        *('{"a":[1}', '{"a":"', '{"a":"\\', '{"a":[' + "[" * 200, "null", '"a"', '{"a" 1}'),
    ],
)
def test_what_is_broken_is_refused(text: str) -> None:
    with pytest.raises(NotJson):
        asyncio.run(members(text.encode()))


async def test_others_are_served_while_a_long_prompt_is_skipped() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.get_running_loop().create_task(count())
    prompt = json.dumps(list(range(1_000_000)))
    found = await members(f'{{"prompt": {prompt}, "text": "{"x" * 8_000_000}"}}'.encode())
    other.cancel()
    assert len(found["prompt"]) == len(prompt)
    assert turns > 50


@pytest.mark.parametrize("inside", [b'\\"', b"\\\\", b"[],"])
async def test_nothing_dense_holds_the_others_up(inside: bytes) -> None:
    text = inside * 300_000
    body = b'{"a": [%b0]}' % text if inside == b"[]," else b'{"a": "%b"}' % text
    assert list(await members(body)) == ["a"]
