from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.fake_engine import MODEL, FakeEngine, engines
from vllmdeploy import MultiVLLMClient, create_multi_vllm_client
from vllmdeploy.client import errors
from vllmdeploy.client.answers import Answer
from vllmdeploy.errors import UsageError
from vllmdeploy.routing.thresholds import Thresholds

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def four() -> Iterator[list[FakeEngine]]:
    with engines(4) as fleet:
        yield fleet


@pytest.fixture
def client(four: list[FakeEngine]) -> Iterator[MultiVLLMClient]:
    with MultiVLLMClient([engine.url for engine in four]) as made:
        yield made


def served(four: list[FakeEngine]) -> list[int]:
    return [len(engine.asked) for engine in four]


def test_the_seeds_call_works_as_written(client: MultiVLLMClient) -> None:
    response = client.chat.completions.create(
        model="/var/shared/models/Qwen3-30B-A3B-Instruct-2507",
        messages=[{"role": "user", "content": "Hello!"}],
        temperature=0.7,
    )
    assert response.choices[0].message.content == "Hello from e0: Hello!"
    assert response.model == "/var/shared/models/Qwen3-30B-A3B-Instruct-2507"
    assert response.usage.total_tokens == 7
    assert response.choices[0].finish_reason == "stop"


def test_the_client_is_made_of_ports_as_in_the_seed(four: list[FakeEngine]) -> None:
    with create_multi_vllm_client(
        ports=[engine.port for engine in four], host="localhost"
    ) as client:
        answer = client.completions.create(model=MODEL, prompt="Hi", max_tokens=4)
        assert answer.choices[0].text == "Hello from e0"
        assert [one.address.port for one in client.upstreams] == [e.port for e in four]


def test_ports_come_from_the_environment_when_none_are_given(
    four: list[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLLM_PORTS", f"{four[0].port},{four[1].port}")
    monkeypatch.setenv("VLLM_HOST", "127.0.0.1")
    with create_multi_vllm_client() as client:
        assert len(client.upstreams) == 2
    assert capsys.readouterr().err == (
        f"vllmdeploy: VLLM_PORTS={four[0].port},{four[1].port} (from the environment)\n"
        "vllmdeploy: VLLM_HOST=127.0.0.1 (from the environment)\n"
    )
    monkeypatch.setenv("VLLM_PORTS", "8001;8002")
    with pytest.raises(UsageError, match="VLLM_PORTS: '8001;8002' is not ports"):
        create_multi_vllm_client()


def test_without_ports_it_is_the_seeds_four() -> None:
    assert [str(one.address) for one in create_multi_vllm_client().upstreams] == [
        f"http://localhost:{port}" for port in (8001, 8002, 8003, 8004)
    ]


def test_calls_go_round(client: MultiVLLMClient, four: list[FakeEngine]) -> None:
    for _ in range(8):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert served(four) == [2, 2, 2, 2]


def test_many_threads_may_use_one_client(client: MultiVLLMClient, four: list[FakeEngine]) -> None:
    def ask(number: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": str(number)}]
        )
        return str(answer.choices[0].message.content).split(": ")[1]

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(200))) == [str(n) for n in range(200)]
    assert served(four) == [50, 50, 50, 50]


def test_map_answers_in_order_and_keeps_its_bound(four: list[FakeEngine]) -> None:
    with MultiVLLMClient(four[0].url) as client:
        answers = client.map((str(n) for n in range(50)), max_workers=5, temperature=0)
    assert [a.choices[0].message.content.split(": ")[1] for a in answers] == [
        str(n) for n in range(50)
    ]
    assert four[0].busiest <= 5
    assert {asked["temperature"] for asked in four[0].asked} == {0}


def test_map_takes_messages_and_puts_errors_in_their_places(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    four[1].mode = 400
    good, bad = client.map([HELLO, "x"], max_workers=1, return_errors=True, model=MODEL)
    assert isinstance(good, Answer)
    assert isinstance(bad, errors.BadRequestError)
    with pytest.raises(errors.BadRequestError):
        client.map(["x"] * 8, max_workers=2)


def test_a_stream_comes_piece_by_piece(client: MultiVLLMClient) -> None:
    with client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        text = "".join(c.choices[0].delta.content for c in stream if c.choices)
        assert (text, stream.instance.startswith("127.0.0.1:")) == ("Hello e0", True)


def test_leaving_a_stream_stops_the_engine(client: MultiVLLMClient, four: list[FakeEngine]) -> None:
    four[0].mode = "endless"
    stream = client.completions.create(model=MODEL, prompt="x", stream=True)
    assert next(stream).choices[0].text == "x"
    stream.close()
    assert four[0].left_early.wait(10)
    assert client.status().instances[0].inflight == 0
    assert client.status().instances[0].state == "ready", "leaving is nothing against the instance"


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("no_done", "the stream ended before its [DONE]"),
        ("cut_stream", "connection lost in the answer"),
        ("error_event", "500: engine died"),
        ("bad_event", "Expecting property name enclosed in double quotes"),
    ],
)
def test_a_broken_stream_is_never_silent(
    client: MultiVLLMClient, four: list[FakeEngine], mode: str, words: str
) -> None:
    four[0].mode = mode
    stream = client.completions.create(model=MODEL, prompt="x", stream=True)
    with pytest.raises(errors.APIError) as caught:
        list(stream)
    assert words in str(caught.value)
    one = client.status().instances[0]
    assert (one.state, one.inflight) == ("suspect", 0)
    assert served(four) == [1, 0, 0, 0], "never repeated after the first byte"


@pytest.mark.parametrize("mode", ["reset", "cut", "garbage", 500, 503])
def test_a_fault_before_the_first_byte_is_answered_by_another(
    client: MultiVLLMClient, four: list[FakeEngine], mode: str | int
) -> None:
    four[0].mode = mode
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "Hello from e1: Hello!"


def test_a_stream_fails_over_before_its_first_byte(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    four[0].mode = 500
    stream = client.completions.create(model=MODEL, prompt="x", stream=True)
    assert [c.choices[0].text for c in stream if c.choices] == ["Hel", "lo ", "e1"]


def test_a_closed_port_is_left_at_once_and_taken_back_by_itself(four: list[FakeEngine]) -> None:
    quick = Thresholds(check_interval_out_s=0.01)
    with MultiVLLMClient([engine.url for engine in four], thresholds=quick) as client:
        four[0].close_port()
        for _ in range(8):
            client.chat.completions.create(model=MODEL, messages=HELLO)
        assert client.status().instances[0].state == "down"
        assert client.status().instances[0].reason == "connection refused"
        assert served(four)[0] == 0
        four[0].open()
        four[0].entered.acquire()  # the canary
        while client.status().instances[0].state != "ready":
            client.chat.completions.create(model=MODEL, messages=HELLO)
        assert four[0].canaries == 1


def test_killing_one_of_four_under_load_loses_nothing(four: list[FakeEngine]) -> None:
    with (
        MultiVLLMClient([engine.url for engine in four], routing="least_inflight") as client,
        ThreadPoolExecutor(1) as killer,
    ):
        for engine in four:
            engine.hold()

        def kill() -> None:
            for _ in range(8):
                four[2].entered.acquire()
            four[2].close_port()
            for engine in four:
                engine.release()

        killed = killer.submit(kill)
        answers = client.map([str(n) for n in range(2000)], max_workers=32, model=MODEL)
        killed.result()
    texts = [a.choices[0].message.content.split(": ")[1] for a in answers]
    assert texts == [str(n) for n in range(2000)]


def test_a_poisonous_request_meets_two_instances_and_no_more(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    for engine in four:
        engine.mode = "reset"
    with pytest.raises(errors.APIConnectionError, match="connection lost before an answer"):
        client.completions.create(model=MODEL, prompt="POISON")
    assert sum(served(four)) <= 4, "each may be asked once more on a fresh connection"
    assert sum(bool(n) for n in served(four)) == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, errors.BadRequestError), (404, errors.NotFoundError), (429, errors.RateLimitError)],
)
def test_an_error_of_the_request_is_not_repeated(
    client: MultiVLLMClient, four: list[FakeEngine], status: int, kind: type[errors.APIStatusError]
) -> None:
    four[0].mode = status
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert str(caught.value) == f"{caught.value.instance}: {status}: e0 says {status}"
    assert caught.value.status_code == status
    assert caught.value.body["error"]["code"] == status
    assert served(four) == [1, 0, 0, 0]
    assert client.status().ready == 4


def test_an_error_of_all_is_the_engines_own_after_three_tries(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    for engine in four:
        engine.mode = 500
    with pytest.raises(errors.InternalServerError, match="500: e2 says 500"):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert served(four) == [1, 1, 1, 0]


def test_when_nobody_is_there_each_is_named_with_its_reason() -> None:
    with engines(2) as fleet:
        urls = [engine.url for engine in fleet]
        first, second = (f"127.0.0.1:{engine.port}" for engine in fleet)
    with MultiVLLMClient(urls) as client:
        with pytest.raises(errors.APIConnectionError, match="connection refused"):
            client.completions.create(model=MODEL, prompt="x")
        with pytest.raises(errors.APIConnectionError) as caught:
            client.completions.create(model=MODEL, prompt="x")
    assert str(caught.value) == (
        f"no instance serves {MODEL}: {first} is down (connection refused), "
        f"{second} is down (connection refused)"
    )


def test_a_full_instance_makes_calls_wait_and_then_says_when_to_come_back(
    four: list[FakeEngine],
) -> None:
    limits = Thresholds(queue_length=1, queue_timeout_s=0.2)
    four[0].hold()
    with (
        MultiVLLMClient(four[0].url, max_inflight=1, thresholds=limits) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(client.completions.create, model=MODEL, prompt="1")
        four[0].entered.acquire()
        with pytest.raises(errors.APITimeoutError, match="every instance is busy: waited too long"):
            client.completions.create(model=MODEL, prompt="2")
        second = threads.submit(client.completions.create, model=MODEL, prompt="3")
        while client.status().waiting == 0:
            pass
        with pytest.raises(errors.APIConnectionError) as caught:
            client.completions.create(model=MODEL, prompt="4")
        assert str(caught.value) == (
            "every instance is busy and the queue is full\n  -> try again in 1 s"
        )
        four[0].release()
        first.result()
        assert isinstance(second.exception() or second.result(), Answer | errors.APITimeoutError)


def test_no_model_is_the_only_one_and_else_an_error(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    client.completions.create(prompt="x")
    assert [asked["model"] for engine in four for asked in engine.asked] == [MODEL]
    for engine in four:
        engine.models = ("a", "b")
    with (
        MultiVLLMClient([e.url for e in four]) as other,
        pytest.raises(ValueError, match="name a model: 2 are served: a, b"),
    ):
        other.completions.create(prompt="x")


def test_embeddings_and_models_are_there_too(client: MultiVLLMClient) -> None:
    answer = client.embeddings.create(model=MODEL, input="text")
    assert answer.data[0].embedding == [0.5, 0.25]
    assert [model.id for model in client.models.list().data] == [MODEL]


def test_what_the_sdk_takes_beside_the_body_is_taken(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    client.completions.create(
        model=MODEL,
        prompt="x",
        extra_body={"top_k": 3},
        extra_headers={"X-Priority": "-1"},
        timeout=30,
    )
    assert four[0].asked[0] == {"model": MODEL, "prompt": "x", "top_k": 3}
    assert four[0].headers[0]["x-priority"] == "-1"


@pytest.mark.parametrize(
    "headers", [{"X-A": "b\r\nX-B: c"}, {"A B": "c"}, {"Content-Length": "0"}, {"": "x"}]
)
def test_headers_cannot_change_the_shape_of_a_request(
    client: MultiVLLMClient, four: list[FakeEngine], headers: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="header"):
        client.completions.create(model=MODEL, prompt="x", extra_headers=headers)
    assert served(four) == [0, 0, 0, 0]


def test_a_call_that_takes_too_long_ends(client: MultiVLLMClient, four: list[FakeEngine]) -> None:
    four[0].hold()
    with pytest.raises(errors.APITimeoutError, match=r"no answer within 0\.05 s"):
        client.completions.create(model=MODEL, prompt="x", timeout=0.05)
    assert client.status().instances[0].inflight == 0


def test_the_key_goes_to_the_instances(four: list[FakeEngine]) -> None:
    with MultiVLLMClient(four[0].url, api_key="sk-1") as client:
        client.completions.create(model=MODEL, prompt="x")
    assert four[0].headers[0]["authorization"] == "Bearer sk-1"
    with pytest.raises(UsageError, match="a key is one line of plain characters"):
        MultiVLLMClient(four[0].url, api_key="sk\r\nx: y")


def test_an_answer_that_is_no_json_is_named(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    four[0].mode = "not_json"
    with pytest.raises(errors.APIConnectionError, match="the answer is no JSON"):
        client.completions.create(model=MODEL, prompt="x")


def test_a_raw_response_can_be_read_in_every_form(client: MultiVLLMClient) -> None:
    raw = client.chat.completions.with_streaming_response
    with raw.create(model=MODEL, messages=HELLO) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.json()["object"] == "chat.completion"
        assert response.text() == response.read().decode()
        parsed = response.parse()
        assert isinstance(parsed, Answer)
        assert parsed.choices[0].message.role == "assistant"
    with raw.create(model=MODEL, messages=HELLO, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
        assert (len(lines), lines[-1]) == (5, "data: [DONE]")
    with raw.create(model=MODEL, messages=HELLO, stream=True) as response:
        assert "".join(response.iter_text()).encode().endswith(b"[DONE]\n\n")
    with raw.create(model=MODEL, messages=HELLO, stream=True) as response:
        stream = response.parse()
        assert not isinstance(stream, Answer)
        assert len(list(stream)) == 4
    with raw.create(model=MODEL, messages=HELLO) as response:
        assert b"".join(response.iter_bytes()).startswith(b"{")
    assert all(one.inflight == 0 for one in client.status().instances)


def test_answers_behave_like_the_sdks_objects() -> None:
    answer = Answer({"id": "1", "choices": [{"message": {"content": "x"}}], "extra": 5})
    assert answer.extra == 5
    assert answer.choices[0].message.tool_calls is None
    assert answer.to_dict() == answer.model_dump() == pickle.loads(pickle.dumps(answer)).to_dict()
    assert copy.deepcopy(answer) == answer
    assert answer["id"] == "1"
    assert answer.model_dump_json() == (
        '{"id": "1", "choices": [{"message": {"content": "x"}}], "extra": 5}'
    )
    assert repr(answer.choices[0]) == "Answer(message=Answer(content='x'))"
    with pytest.raises(AttributeError, match="no 'choises' in this answer; it has: id, choices"):
        _ = answer.choises


@pytest.mark.parametrize(
    ("urls", "options", "words"),
    [
        ([], {}, "no instance is given"),
        (["http://a:1"], {"routing": "roundrobin"}, "did you mean round_robin?"),
        (["http://a:1"], {"scheduling": "lifo"}, "did you mean fifo?"),
        (["http://a:1"], {"max_workers": 4}, "unknown option max_workers"),
        (["ftp://a:1"], {}, "neither http nor https"),
    ],
)
def test_a_client_that_cannot_work_is_not_made(
    urls: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        MultiVLLMClient(urls, **options)
    assert words in str(caught.value)


def test_what_json_cannot_hold_is_refused_before_anything_is_sent(
    client: MultiVLLMClient, four: list[FakeEngine]
) -> None:
    with pytest.raises(TypeError, match="the request cannot be written as JSON"):
        client.completions.create(model=MODEL, prompt=object())
    assert served(four) == [0, 0, 0, 0]


def test_every_policy_serves_the_same_calls(four: list[FakeEngine]) -> None:
    for routing in ("adaptive", "prefix_affinity", "consistent_hash", "power_of_two"):
        with MultiVLLMClient([e.url for e in four], routing=routing) as client:
            answers = client.map(["same beginning"] * 12, max_workers=2, model=MODEL, user="bob")
        who = Counter(a.choices[0].message.content.split(":")[0] for a in answers)
        assert sum(who.values()) == 12
        if routing == "consistent_hash":
            assert len(who) == 1


def test_a_program_that_never_closes_its_client_ends_without_a_word(
    four: list[FakeEngine],
) -> None:
    # On a busy machine the developers' mode warns of callbacks that took long.
    program = f"""
        import logging
        from vllmdeploy import MultiVLLMClient
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        client = MultiVLLMClient([{four[0].url!r}, {four[1].url!r}])
        print(client.completions.create(prompt="x", max_tokens=4).choices[0].text)
        stream = client.completions.create(prompt="x", stream=True)
        next(stream)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Hello from e")


def test_a_forked_child_may_use_the_client_of_its_parent(four: list[FakeEngine]) -> None:
    program = f"""
        import os, sys
        from vllmdeploy import MultiVLLMClient
        client = MultiVLLMClient([{four[0].url!r}])
        client.completions.create(prompt="x")
        child = os.fork()
        client.completions.create(prompt="x")
        if child == 0:
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    # From 3.12 on Python warns whoever forks with threads; this program does, and may.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(four[0].asked) == 3
