"""A key for some models opens them on every route that there is, and no other model on any."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.support.running_gateway import Api, served, write
from vllmdeploy.gateway.access import Door
from vllmdeploy.gateway.api.shapes import KEPT
from vllmdeploy.gateway.table import routes

KEY, FREE, ADMIN = "sk-only-a-0001", "sk-for-all-0002", "sk-admin-0003"
ASKED = {
    "prompt": "x",
    "messages": [{"role": "user", "content": "x"}],
    "prompts": ["x", "y"],
    "input": "x",
    "query": "x",
    "documents": ["x"],
    "text_1": "x",
    "text_2": "y",
    "tokens": [1],
}
# Both at once are refused by the simple route before it looks for an instance.
_ONE_OF = {"/generate": {"messages", "prompts"}, "/batch_generate": {"messages", "prompt"}}
LONG = "x" * 100_000
# Rows of batches are asked by way of these routes: see test_gateway_batches.
KEYED = [
    (route.method, route.path)
    for route in routes().all
    if route.door is Door.KEY and not route.path.startswith(KEPT)
]
POSTED = [path for method, path in KEYED if method == "POST"]


def options(folder: Path) -> tuple[str, ...]:
    write(folder / "keys", f"ann:{KEY} models=a\nbob:{FREE}\n")
    write(folder / "admin", f"{ADMIN}\n")
    return ("--api-keys-file", f"{folder / 'keys'}", "--admin-key-file", f"{folder / 'admin'}")


def body(path: str, model: str) -> dict[str, object]:
    left_out = _ONE_OF.get(path, set())
    return {"model": model, **{k: v for k, v in ASKED.items() if k not in left_out}}


async def ask(api: Api, method: str, path: str, model: str, key: str) -> httpx.Response:
    where = path.replace("{model}", model)
    if method == "GET":
        return await api.get(where, x_api_key=key)
    return await api.post(where, body(path, model), x_api_key=key)


def test_no_route_behind_the_key_is_left_out() -> None:
    assert {path for method, path in KEYED if method == "GET"} == {
        "/v1/models",
        "/v1/models/{model}",
    }
    assert {"/generate", "/batch_generate", "/tokenize", "/v1/messages"} <= set(POSTED)


async def test_each_route_answers_for_the_keys_own_model_and_refuses_the_other(
    tmp_path: Path,
) -> None:
    async with served(*options(tmp_path), models=("a", "b")) as (api, (_, b)):
        for method, path in KEYED:
            mine = await ask(api, method, path, "a", KEY)
            assert mine.status_code == 200, path
            theirs = await ask(api, method, path, "b", KEY)
            if path == "/v1/models":
                assert [one["id"] for one in theirs.json()["data"]] == ["a"]
            else:
                assert theirs.status_code == 403, path
                assert theirs.json()["error"]["message"] == "this key may not use the model b"
        assert b.asked == []
        for method, path in KEYED:
            assert (await ask(api, method, path, "b", FREE)).status_code == 200, path


@pytest.mark.parametrize("path", POSTED)
async def test_no_other_way_to_name_the_model_is_a_way_around(tmp_path: Path, path: str) -> None:
    given = body(path, "a")
    del given["model"]
    rest = json.dumps(given)[1:]
    texts = {
        "the last of two counts": '{"model": "a", "model": "b", ' + rest,
        "escaped": '{"mod\\u0065l": "b", ' + rest,
        "escaped and a plain one before": '{"model": "a", "mod\\u0065l": "b", ' + rest,
        "after a long text": json.dumps({"user": LONG})[:-1] + ', "model": "b", ' + rest,
        "escaped after a long text": json.dumps({"user": LONG, "model": "a"})[:-1]
        + ', "\\u006dodel": "b", '
        + rest,
    }
    async with served(*options(tmp_path), models=("a", "b")) as (api, (_, b)):
        for what, text in texts.items():
            answer = await api.client.post(path, content=text, headers={"x-api-key": KEY})
            assert answer.status_code == 403, what
        assert b.asked == []


async def test_without_a_model_the_default_one_is_no_way_around(tmp_path: Path) -> None:
    given = (*options(tmp_path), "--default-model", "b")
    async with served(*given, models=("a", "b")) as (api, (_, b)):
        for path in POSTED:
            for model in (None, ""):
                asked = {**body(path, "a"), "model": model}
                assert (await api.post(path, asked, x_api_key=KEY)).status_code == 403, path
        assert b.asked == []


async def test_no_key_of_the_api_steers_the_gateway(tmp_path: Path) -> None:
    async with served(*options(tmp_path)) as (api, _):
        for route in routes().all:
            if route.door is Door.ADMIN:
                path = route.path.replace("{id}", "x")
                answer = await api.client.request(route.method, path, headers={"x-api-key": FREE})
                assert answer.status_code == 401, path
