from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllmdeploy
from tests.support.fake_engine import MODEL, engines
from vllmdeploy import AsyncMultiVLLMClient
from vllmdeploy.client.asynchronous import create_async_multi_vllm_client
from vllmdeploy.client.errors import APIConnectionError
from vllmdeploy.client.sse import Events
from vllmdeploy.routing.thresholds import Thresholds


async def test_the_async_twin_has_the_same_calls() -> None:
    with engines(2) as fleet:
        async with create_async_multi_vllm_client([e.port for e in fleet], "127.0.0.1") as client:
            answers = await asyncio.gather(
                *(client.completions.create(model=MODEL, prompt="x") for _ in range(4))
            )
            assert sorted(a.choices[0].text[-2:] for a in answers) == ["e0", "e0", "e1", "e1"]
            stream = await client.chat.completions.create(model=MODEL, messages=[], stream=True)
            async with stream:
                assert (await stream.__anext__()).choices[0].delta.content == "Hel"
                assert len([chunk async for chunk in stream]) == 3
            raw = client.completions.with_streaming_response
            async with raw.create(model=MODEL, prompt="x", stream=True) as response:
                lines = [line async for line in response.iter_lines()]
                assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
            assert [m.id for m in (await client.models.list()).data] == [MODEL]
            found = await client.map(["a", "b"], model=MODEL)
            assert [a.choices[0].message.content[-1] for a in found] == ["a", "b"]
            assert client.status().ready == 2


def test_one_client_may_be_used_in_one_loop_after_another() -> None:
    with engines(1) as fleet:
        client = AsyncMultiVLLMClient(fleet[0].url)

        async def once() -> str:
            answer = await client.completions.create(model=MODEL, prompt="x")
            await client.close()
            return str(answer.choices[0].text)

        assert [asyncio.run(once()) for _ in range(2)] == ["Hello from e0"] * 2


@pytest.mark.parametrize("hangs", ["its port answers", "its health fails"])
async def test_calls_that_hang_are_moved_when_their_instance_is_found_hung(hangs: str) -> None:
    """Only before their first byte: what a caller has seen the beginning of is not begun anew."""
    limits = Thresholds(
        check_interval_s=0.01, canary_interval_s=0.02, canary_timeout_s=0.05, ejection_s=1000.0
    )
    with engines(2) as fleet:
        urls = [engine.url for engine in fleet]
        async with AsyncMultiVLLMClient(urls, thresholds=limits) as client:
            fleet[0].healthy = hangs == "its port answers"
            fleet[0].hold()
            asking = [client.completions.create(model=MODEL, prompt="x") for _ in range(4)]
            answers = await asyncio.wait_for(asyncio.gather(*asking), 60)
            assert [one.choices[0].text for one in answers] == ["Hello from e1"] * 4
            assert [len(engine.asked) for engine in fleet] == [2, 4]
            assert client.status().ready == 1


async def test_a_stream_that_has_not_begun_is_moved_too() -> None:
    limits = Thresholds(check_interval_s=0.01, canary=False, ejection_s=1000.0)
    with engines(2) as fleet:
        urls = [engine.url for engine in fleet]
        async with AsyncMultiVLLMClient(urls, thresholds=limits) as client:
            fleet[0].healthy = False
            fleet[0].hold()
            ask = client.completions.create(model=MODEL, prompt="x", stream=True)
            chunks = [chunk async for chunk in await asyncio.wait_for(ask, 60)]
            assert "".join(one.choices[0].text for one in chunks if one.choices) == "Hello e1"


async def test_a_host_that_has_no_address_is_named() -> None:
    async with AsyncMultiVLLMClient("http://no-such-host.invalid:8000") as client:
        with pytest.raises(APIConnectionError, match=r"no-such-host\.invalid"):
            await client.completions.create(model=MODEL, prompt="x")


def test_the_public_names_are_lazy_and_complete() -> None:
    program = (
        "import sys, vllmdeploy; before = [m for m in sys.modules if m.startswith('vllmdeploy.')]; "
        "from vllmdeploy import MultiVLLMClient; "
        "print(before, sorted({m.split('.')[0] for m in sys.modules} "
        "& {'pydantic', 'typer', 'rich', 'httpx', 'paramiko'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] []\n"
    for name in vllmdeploy.__all__:
        assert callable(getattr(vllmdeploy, name))
        assert name in dir(vllmdeploy)
    with pytest.raises(AttributeError, match="has no attribute 'MultiVLLM'"):
        _ = vllmdeploy.MultiVLLM


@given(st.lists(st.text().filter(lambda t: "\r" not in t), max_size=5), st.data())
def test_events_are_the_same_wherever_the_stream_is_cut(
    texts: list[str], data: st.DataObject
) -> None:
    wanted = [text.encode() for text in texts]
    raw = b": comment\n\nid: 4\n" + b"".join(
        b"".join(b"data: %b\n" % line for line in event.split(b"\n")) + b"\n" for event in wanted
    )
    cut = data.draw(st.integers(0, len(raw)))
    events = Events()
    assert events.feed(raw[:cut]) + events.feed(raw[cut:]) == wanted


def test_lines_may_end_in_carriage_returns_and_have_no_space() -> None:
    assert Events().feed(b"data:a\r\ndata: b\r\n\r\n") == [b"a\nb"]


def test_an_event_that_does_not_end_is_refused() -> None:
    events = Events()
    assert events.feed(b"x" * (16 << 20)) == []
    with pytest.raises(ValueError, match="an event is longer than 16777216 bytes"):
        events.feed(b"x")
