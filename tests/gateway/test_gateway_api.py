"""The routes of the HTTP API, asked of a real gateway in front of engines on real sockets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running_gateway import Api, engines, events, gateway, served, write
from vllmdeploy import __version__
from vllmdeploy.gateway.api.forward import PATHS

USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
SAMPLE = re.compile(r'[a-z_:]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+\-]+(Inf)?')


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    """The status, code and message, from the shape that OpenAI's clients read."""
    value = answer.json()
    assert set(value) == {"error"}
    assert set(value["error"]) == {"message", "type", "code"}
    return answer.status_code, value["error"]["code"], value["error"]["message"]


# who it is


async def test_the_root_says_who_it_is_and_what_is_served() -> None:
    async with served("--name", "lab", models=("a", "b")) as (api, _):
        assert (await api.get("/")).json() == {
            "name": "lab",
            "version": __version__,
            "state": "ready",
            "models": ["a", "b"],
            "instances": {"ready": 2, "total": 2},
        }


async def test_health_is_200_with_what_each_model_has() -> None:
    async with served("--limit", "7") as (api, _):
        answer = await api.get("/health")
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "ready",
            "instances": {"ready": 1, "total": 1},
            "models": {
                "m": {
                    "instances": {"ready": 1, "total": 1},
                    "tensor_parallel_size": None,
                    "max_num_seqs": None,
                    "max_workers": 7,
                    "max_model_len": 4096,
                    "waiting": 0,
                    "reasons": {},
                }
            },
            "waiting_for_models": [],
        }


async def test_health_is_503_with_the_reason_when_the_only_engine_is_ill() -> None:
    async with served() as (api, (engine,)):
        engine.health = 500
        await api.until_health(503)
        answer = await api.get("/health")
        assert answer.headers["retry-after"] == "2"
        value = answer.json()
        assert value["status"] == "no instance is ready"
        assert value["instances"] == {"ready": 0, "total": 1}
        (reason,) = value["models"]["m"]["reasons"].values()
        assert reason.endswith("/health answered 500")
        engine.health = 200
        await api.until_health(200)


async def test_health_names_an_upstream_that_never_answered() -> None:
    async with engines("m") as (engine,):
        engine.health = 503
        async with gateway("--upstream", engine.url) as api:
            value = (await api.get("/health")).json()
            assert value["models"] == {}
            (waiting,) = value["waiting_for_models"]
            assert waiting["instance"] == engine.url.removeprefix("http://")
            answer = await api.post("/generate", {"prompt": "x"})
            assert problem(answer)[:2] == (503, "unavailable")


async def test_the_description_lists_the_routes_that_exist_and_no_others() -> None:
    async with served() as (api, _):
        paths = (await api.get("/openapi.json")).json()["paths"]
        assert {path: sorted(methods) for path, methods in paths.items()} == {
            **{path: ["get"] for path in ("/", "/health", "/metrics", "/openapi.json")},
            **{path: ["post"] for path in ("/generate", "/batch_generate", *PATHS)},
            **{path: ["get"] for path in ("/v1/models", "/v1/models/{model}")},
            **{path: ["get", "post"] for path in ("/v1/files", "/v1/batches")},
            "/v1/files/{id}": ["delete", "get"],
            "/v1/files/{id}/content": ["get"],
            "/v1/batches/{id}": ["get"],
            "/v1/batches/{id}/cancel": ["post"],
            "/admin/instances": ["get", "post"],
            "/admin/instances/{id}": ["delete"],
            "/admin/instances/{id}/drain": ["post"],
            "/admin/instances/{id}/resume": ["post"],
            "/admin/policy": ["get", "put"],
        }
        for path, methods in paths.items():
            for method in methods:
                answer = await api.client.request(method, path)
                assert "unknown_route" not in answer.text, path


async def test_metrics_are_prometheus_text_whose_labels_no_caller_can_multiply() -> None:
    async with served() as (api, (engine,)):
        engine.counters = (
            "# HELP vllm:num_requests_running Running.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{model_name="m"} 3.0\n'
        )
        await api.post("/generate", {"prompt": "x"})
        for number in range(20):
            await api.get(f"/none/{number}")
            await api.post("/generate", {"prompt": "x", "model": f"model-{number}"})

        name = engine.url.removeprefix("http://")
        line = f'vllm:num_requests_running{{instance="{name}",model_name="m"}} 3.0'

        async def merged() -> bool:
            return line in (await api.get("/metrics")).text.splitlines()

        await api.until(merged)
        answer = await api.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.text.splitlines()
        samples = [one for one in lines if not one.startswith(("# HELP ", "# TYPE "))]
        assert [one for one in samples if not SAMPLE.fullmatch(one)] == []
        named = [one.partition(" ")[0] for one in samples]
        assert len(named) == len(set(named))
        prefix = "vllmdeploy_gateway_requests_total"
        assert f'{prefix}{{route="unknown",model="",status="4xx"}} 20' in lines
        assert f'{prefix}{{route="/generate",model="",status="4xx"}} 20' in lines
        assert f'{prefix}{{route="/generate",model="m",status="2xx"}} 1' in lines


# generate


async def test_a_prompt_is_completed_as_it_stands_with_256_tokens_at_most() -> None:
    async with served() as (api, (engine,)):
        answer = await api.post("/generate", {"prompt": "Hello, I am a", "top_k": 3})
        assert answer.status_code == 200
        assert answer.json() == {
            "id": "cmpl-1",
            "model": "m",
            "text": "Hello, I am a!",
            "finish_reason": "length",
            "usage": USAGE,
            "instance": engine.url.removeprefix("http://"),
        }
        (asked,) = engine.asked
        assert asked.path == "/v1/completions"
        assert asked.json == {
            "prompt": "Hello, I am a",
            "top_k": 3,
            "max_tokens": 256,
            "model": "m",
        }


async def test_messages_go_through_the_chat_template() -> None:
    async with served() as (api, (engine,)):
        messages = [{"role": "user", "content": "What?"}]
        answer = await api.post("/generate", {"messages": messages, "max_tokens": 9})
        assert answer.json()["text"] == "What?!"
        (asked,) = engine.asked
        assert asked.path == "/v1/chat/completions"
        assert asked.json == {"messages": messages, "max_tokens": 9, "model": "m"}


async def test_several_choices_come_as_texts() -> None:
    async with served() as (api, _):
        value = (await api.post("/generate", {"prompt": "x", "n": 3})).json()
        assert value["text"] == "x!"
        assert value["texts"] == ["x!"] * 3
        assert value["finish_reasons"] == ["length"] * 3


@pytest.mark.parametrize("path", ["prompt", "messages"])
async def test_a_stream_is_texts_then_done(path: str) -> None:
    given: dict[str, Any] = {"prompt": "x"}
    if path == "messages":
        given = {"messages": [{"role": "user", "content": "x"}]}
    async with served() as (api, _):
        answer = await api.post("/generate", {**given, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        texts = [{"text": f"x{number} é"} for number in range(4)]
        last = {"text": "x4 é", "finish_reason": "length"}
        assert events(answer.text) == [*texts, last, "[DONE]"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 65}, "n must be from 1 to 64"),
        ({"n": 10**6}, "n must be from 1 to 64"),
        ({"n": 0}, "n must be from 1 to 64"),
        ({"best_of": 65}, "best_of must be from 1 to 64"),
        ({"n": "1000000"}, "n must be a whole number"),
        ({"n": 1e6}, "n must be a whole number"),
        ({"n": True}, "n must be a whole number"),
        ({"stream": "true"}, "stream must be true or false"),
        ({"stream": 1}, "stream must be true or false"),
        ({"model": 7}, "model must be a text"),
        ({"chat_template": "{{ x }}"}, "chat_template is not accepted by this gateway"),
        ({"prompt": 7}, "prompt must be a text"),
        ({"prompt": None}, "prompt must be a text"),
        ({"messages": []}, "give either `prompt` (a text) or `messages` (a list)"),
    ],
)
async def test_what_no_engine_should_be_asked_is_refused(
    given: dict[str, object], message: str
) -> None:
    async with served() as (api, (engine,)):
        assert problem(await api.post("/generate", {"prompt": "x", **given}))[2] == message
        padded = {"prompt": "x", "padding": "y" * 300_000, **given}
        assert problem(await api.post("/generate", padded))[::2] == (400, message)
        assert engine.asked == []


async def test_a_number_too_long_to_be_read_does_not_pass_for_none() -> None:
    async with served() as (api, (engine,)):
        body = b'{"prompt": "x", "n": 1000000.' + b"0" * 70_000 + b"}"
        for path in ("/generate", "/v1/completions"):
            answer = await api.client.post(path, content=body)
            assert problem(answer) == (400, "bad_request", "n is too long")
        assert engine.asked == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"nonsense", b'"x"', b"\xff\xfe", b"[" * 9999])
async def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    async with served() as (api, (engine,)):
        for path in ("/generate", "/batch_generate", "/v1/completions"):
            answer = await api.client.post(path, content=body)
            assert problem(answer)[:2] == (400, "bad_request")
        assert engine.asked == []


async def test_what_the_engine_says_against_a_request_is_passed_on() -> None:
    async with served() as (api, (engine,)):
        engine.mode = "422"
        for stream in (False, True):
            answer = await api.post("/generate", {"prompt": "x", "stream": stream})
            assert problem(answer) == (422, "T", "status 422")


# batches


async def test_a_batch_comes_back_in_order_with_the_usage_of_all() -> None:
    async with served(models=("m", "m")) as (api, started):
        prompts = [f"p{number}" for number in range(100)]
        answer = await api.post("/batch_generate", {"prompts": prompts, "max_tokens": 4})
        value = answer.json()
        assert [one["index"] for one in value["results"]] == list(range(100))
        assert [one["text"] for one in value["results"]] == [f"{one}!" for one in prompts]
        assert value["usage"] == {name: 100 * count for name, count in USAGE.items()}
        assert sorted(one.json["prompt"] for e in started for one in e.asked) == sorted(prompts)
        assert {one.json["max_tokens"] for e in started for one in e.asked} == {4}


async def test_a_bad_prompt_spoils_only_itself() -> None:
    async with served("--batch-size", "1") as (api, (engine,)):
        engine.mode = lambda number: "400" if number == 2 else "ok"
        value = (await api.post("/batch_generate", {"prompts": ["a", "b", 7, "c"]})).json()
        name = engine.url.removeprefix("http://")
        good = {"finish_reason": "length", "usage": USAGE, "instance": name}
        theirs = {"message": "status 400", "type": "invalid_request_error", "code": "T"}
        ours = {"message": "this prompt is not a text", "type": "invalid_request_error"}
        assert value["results"] == [
            {"index": 0, "text": "a!", **good},
            {"index": 1, "error": {**theirs, "status": 400}},
            {"index": 2, "error": {**ours, "code": "bad_request", "status": 400}},
            {"index": 3, "text": "c!", **good},
        ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": ["x"] * 1025}, "1025 prompts; one batch may have 1024"),
        ({"prompts": []}, "`prompts` is empty"),
        ({"prompts": "x"}, "`prompts` must be a list of texts"),
        ({}, "`prompts` must be a list of texts"),
        ({"prompts": ["x"], "prompt": "y"}, "a batch has `prompts` only"),
        (
            {"prompts": ["x"], "stream": True},
            "a batch is not streamed; use /generate for one prompt",
        ),
        ({"prompts": ["x"], "n": 65}, "n must be from 1 to 64"),
    ],
)  # fmt: skip
async def test_a_batch_that_is_none_is_refused(given: dict[str, object], message: str) -> None:
    async with served() as (api, (engine,)):
        answer = await api.post("/batch_generate", given)
        assert problem(answer) == (400, "bad_request", message)
        assert engine.asked == []


# the engine's own routes


@pytest.mark.parametrize("path", PATHS)
async def test_the_engines_own_routes_are_passed_through_as_they_are(path: str) -> None:
    async with served() as (api, (engine,)):
        sent = b'{"model": "m",  "prompt":"x", "unknown": [1, {"a": null}]}'
        answer = await api.client.post(path, content=sent, headers={"accept": "text/x"})
        assert answer.status_code == 200
        assert answer.json()["usage"] == USAGE
        (asked,) = engine.asked
        assert (asked.method, asked.path, asked.body) == ("POST", path, sent)
        assert asked.fields["accept"] == "text/x"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_is_passed_through(path: str) -> None:
    async with served() as (api, _):
        given = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "stream": True}
        answer = await api.post(path, given)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        *found, last = events(answer.text)
        assert last == "[DONE]"
        parts = [one["choices"][0] for one in found]
        texts = [one["delta"]["content"] if "delta" in one else one["text"] for one in parts]
        assert texts == [f"x{number} é" for number in range(5)]


async def test_the_models_are_listed_as_openai_lists_them() -> None:
    async with served(models=("b", "a")) as (api, _):
        value = (await api.get("/v1/models")).json()
        assert value["object"] == "list"
        assert [(one["id"], one["max_model_len"]) for one in value["data"]] == [
            ("a", 4096),
            ("b", 4096),
        ]
        assert (await api.get("/v1/models/a")).json()["id"] == "a"
        answer = await api.get("/v1/models/c")
        assert problem(answer)[:2] == (404, "model_not_found")


# which model


async def test_an_unknown_model_is_404_naming_those_served() -> None:
    async with served(models=("a", "b")) as (api, started):
        for path in ("/generate", "/v1/completions"):
            answer = await api.post(path, {"prompt": "x", "model": "c"})
            message = "the model 'c' is not served here; served: a, b"
            assert problem(answer) == (404, "model_not_found", message)
        assert [one.asked for one in started] == [[], []]


async def test_an_unknown_model_may_be_that_of_an_instance_that_has_not_answered_yet() -> None:
    async with engines("a") as (engine,):
        silent = "http://127.0.0.1:9"
        async with gateway("--upstream", engine.url, "--upstream", silent) as api:
            await api.until_ready(1)
            assert (await api.post("/generate", {"prompt": "x", "model": "a"})).status_code == 200
            answer = await api.post("/generate", {"prompt": "x", "model": "c"})
            status, _, message = problem(answer)
            assert (status, answer.headers["retry-after"]) == (503, "2")
            assert message == (
                "what is served is not known yet, still to answer: 127.0.0.1:9; served: a"
            )


async def test_without_a_model_two_served_are_listed_and_a_default_decides() -> None:
    async with served(models=("a", "b")) as (api, _):
        message = "several models are served, name one in `model`: a, b"
        for given in ({}, {"model": None}, {"model": ""}):
            answer = await api.post("/generate", {"prompt": "x", **given})
            assert problem(answer) == (400, "bad_request", message)
    async with served("--default-model", "b", models=("a", "b")) as (api, (a, b)):
        assert (await api.post("/generate", {"prompt": "x"})).json()["model"] == "b"
        assert (len(a.asked), len(b.asked)) == (0, 1)


async def test_a_model_answers_to_each_of_its_names(tmp_path: Path) -> None:
    async with engines("other") as (engine,):
        names = ["m", "org/m", "/models/m"]
        config = tmp_path / "fleet.json"
        write(config, json.dumps({"upstreams": [{"url": engine.url, "models": names}]}))
        async with gateway("--config", str(config)) as api:
            await api.until_ready(1)
            for name in names:
                answer = await api.post("/generate", {"prompt": "x", "model": name})
                assert answer.json()["model"] == name
            assert (await api.get("/")).json()["models"] == ["m"]


# what does not exist


@pytest.mark.parametrize(
    "path",
    [
        *("/pause", "/resume", "/sleep", "/wake_up", "/v1/load_lora_adapter", "/collective_rpc"),
        *("/v1/unload_lora_adapter", "/reset_prefix_cache", "/start_profile", "/invocations"),
        *("/update_weights", "/server_info", "/v1/uploads", "/docs", "//generate", "/generate/"),
        *("/v1/../pause", "/v1/completions/%2e%2e/pause", "/v1/Completions", "/v1/models/a/b"),
    ],
)
async def test_anything_else_is_404_and_never_reaches_an_engine(path: str) -> None:
    async with served() as (api, (engine,)):
        for method in ("GET", "POST", "PUT", "DELETE"):
            raw = httpx.URL(str(api.client.base_url)).copy_with(raw_path=path.encode())
            answer = await api.client.request(method, raw, content=b'{"prompt": "x"}')
            assert answer.status_code == 404
        assert engine.asked == []


async def test_another_method_is_405_naming_those_that_are_known() -> None:
    async with served() as (api, (engine,)):
        answer = await api.get("/generate")
        assert problem(answer)[:2] == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        assert engine.asked == []


# upstreams that come and go


async def _models(api: Api) -> list[str]:
    found: list[str] = (await api.get("/")).json()["models"]
    return found


async def test_a_new_configuration_adds_and_removes_and_a_broken_one_does_nothing(
    tmp_path: Path,
) -> None:
    config = tmp_path / "fleet.json"
    async with engines("a", "b") as (a, b):
        write(config, json.dumps({"upstreams": [{"url": a.url}]}))
        async with gateway("--config", str(config)) as api:
            await api.until_ready(1)
            write(config, json.dumps({"upstreams": [{"url": a.url}, {"url": b.url}]}))
            await api.until_ready(2)
            assert await _models(api) == ["a", "b"]
            checks = b.checks
            write(config, '{"upstreams": [{"url": "http://127.0.0.1:1"}')

            async def checked() -> bool:
                return b.checks > checks + 30

            await api.until(checked)
            assert await _models(api) == ["a", "b"]
            write(config, json.dumps({"upstreams": [{"url": b.url}]}))

            async def alone() -> bool:
                return await _models(api) == ["b"]

            await api.until(alone)
            assert (await api.post("/generate", {"prompt": "x"})).json()["model"] == "b"
