"""An upstream that the file drains gets nothing new until the file says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.running_gateway import Api, engines, gateway, write
from vllmdeploy.tools.gateway_page import parse


def put(path: Path, *upstreams: dict[str, object]) -> None:
    write(path, json.dumps({"upstreams": upstreams}))


async def state(api: Api, name: str) -> tuple[str, bool]:
    page = parse((await api.get("/metrics")).text)
    assert page is not None
    found = page.instance(name)
    return found.state, found.ready


async def until_state(api: Api, name: str, wanted: str) -> None:
    async def reached() -> bool:
        return (await state(api, name))[0] == wanted

    await api.until(reached)


async def test_a_drained_upstream_gets_nothing_new_and_comes_back(tmp_path: Path) -> None:
    config = tmp_path / "fleet.json"
    async with engines("m", "m") as (a, b):
        one: dict[str, object] = {"id": "one", "url": a.url, "models": ["m"], "generation": 1}
        two: dict[str, object] = {"id": "two", "url": b.url, "models": ["m"], "generation": 1}
        put(config, one, two)
        async with gateway("--config", str(config)) as api:
            await api.until_ready(2)
            put(config, {**one, "drain": True}, two)
            await until_state(api, "one", "drained")
            asked = len(a.asked)
            for _ in range(10):
                assert (await api.post("/generate", {"prompt": "x"})).status_code == 200
            assert (len(a.asked), await state(api, "one")) == (asked, ("drained", False))
            put(config, {**one, "drain": True, "weight": 2}, two)
            put(config, one, two)
            await until_state(api, "one", "ready")
            put(config, {**one, "drain": True}, two)
            await until_state(api, "one", "drained")
            put(config, {**one, "generation": 2}, two)
            await until_state(api, "one", "ready")
