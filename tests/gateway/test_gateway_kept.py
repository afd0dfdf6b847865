"""What administrators change is in force at once, and again after the gateway has restarted."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.running_gateway import Api, engines, gateway, write
from tests.support.upstream import FakeEngine
from vllmdeploy.errors import SettingsError
from vllmdeploy.gateway.kept import Kept, Mark, Ways, dumps, parse
from vllmdeploy.gateway.kept_file import KeptFile
from vllmdeploy.gateway.spec import FleetSpec, UpstreamSpec

ADMIN = "sk-admin-0003"


def sorted_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@asynccontextmanager
async def started(folder: Path, *options: str) -> AsyncGenerator[Api]:
    """Each call is a gateway that knows nothing but its files."""
    write(folder / "admin", f"{ADMIN}\n")
    files = ("--config", str(folder / "fleet.json"), "--admin-key-file", str(folder / "admin"))
    async with gateway(*files, *options) as api:
        api.client.headers["x-api-key"] = ADMIN
        yield api


def fleet(folder: Path, *upstreams: dict[str, Any], **ways: str) -> None:
    write(folder / "fleet.json", json.dumps({"upstreams": upstreams, **ways}))


def entry(engine: FakeEngine, name: str, generation: int = 0) -> dict[str, Any]:
    return {"id": name, "url": engine.url, "generation": generation}


async def states(api: Api) -> dict[str, str]:
    listed = (await api.get("/admin/instances")).json()["instances"]
    return {one["id"]: one["origin"] for one in listed}


async def policy(api: Api) -> list[str]:
    return list((await api.get("/admin/policy")).json().values())


async def remove(api: Api, name: str) -> None:
    assert (await api.client.delete(f"/admin/instances/{name}")).status_code == 200


async def drained(api: Api, name: str) -> bool:
    listed = (await api.get("/admin/instances")).json()["instances"]
    return next(one["state"] for one in listed if one["id"] == name) in ("draining", "drained")


async def test_what_was_added_is_there_again_and_what_was_removed_is_not(tmp_path: Path) -> None:
    async with engines("m", "m", "m") as (a, b, c):
        fleet(tmp_path, entry(a, "a"), entry(b, "b"))
        async with started(tmp_path) as api:
            assert (await api.post("/admin/instances", entry(c, "c"))).status_code == 201
            await remove(api, "b")
            assert await states(api) == {"a": "file", "c": "admin"}
        async with started(tmp_path) as api:
            assert await states(api) == {"a": "file", "c": "admin"}
            await api.until_ready(2)
            await remove(api, "c")
            assert (await api.post("/admin/instances", entry(b, "b"))).status_code == 201
        async with started(tmp_path) as api:
            assert await states(api) == {"a": "file", "b": "file"}


async def test_a_new_file_brings_back_only_what_is_new_in_it(tmp_path: Path) -> None:
    async with engines("m", "m") as (a, b):
        fleet(tmp_path, entry(a, "a"), entry(b, "b", 1))
        async with started(tmp_path) as api:
            await remove(api, "b")

            async def seen(*names: str) -> bool:
                return set(await states(api)) == set(names)

            fleet(tmp_path, entry(b, "b", 1))
            await api.until(lambda: seen())
            fleet(tmp_path, entry(a, "a"), entry(b, "b", 2))
            await api.until(lambda: seen("a", "b"))
            await remove(api, "b")
            fleet(tmp_path, entry(a, "a"))
            await api.running.gateway.steering.take(FleetSpec((UpstreamSpec("a", a.url),)))
        fleet(tmp_path, entry(a, "a"), entry(b, "b", 2))
        async with started(tmp_path) as api:
            assert set(await states(api)) == {"a", "b"}


async def test_a_drained_instance_stays_so_until_it_is_resumed_or_replaced(tmp_path: Path) -> None:
    async with engines("m", "m") as (a, b):
        fleet(tmp_path, entry(a, "a", 1), entry(b, "b", 1))
        async with started(tmp_path) as api:
            for name in ("a", "b"):
                await api.until_ready(2) if name == "a" else None
                answer = await api.post(f"/admin/instances/{name}/drain", {})
                assert answer.status_code == 200
        async with started(tmp_path) as api:
            assert await drained(api, "a")
            assert await drained(api, "b")
            assert (await api.post("/admin/instances/a/resume", {})).status_code == 200
            await api.until_ready(1)
        async with started(tmp_path) as api:
            await api.until_ready(1)
            assert await drained(api, "b")
        fleet(tmp_path, entry(a, "a", 1), entry(b, "b", 2))
        async with started(tmp_path) as api:
            await api.until_ready(2)


async def test_a_policy_stays_until_the_file_names_another(tmp_path: Path) -> None:
    async with engines("m") as (a,):
        fleet(tmp_path, policy="random")
        async with started(tmp_path) as api:
            asked = {"routing": "round_robin", "scheduling": "fifo"}
            assert (await api.client.put("/admin/policy", json=asked)).status_code == 200
            fleet(tmp_path, entry(a, "a"), policy="random")
            await api.until_ready(1)
            assert await policy(api) == ["round_robin", "fifo", ""]
        async with started(tmp_path) as api:
            assert await policy(api) == ["round_robin", "fifo", ""]
        fleet(tmp_path, policy="power_of_two")
        async with started(tmp_path) as api:
            assert await policy(api) == ["power_of_two", "adaptive", ""]


async def test_instances_of_flags_are_kept_in_a_file_that_is_named(tmp_path: Path) -> None:
    write(tmp_path / "admin", f"{ADMIN}\n")
    async with engines("m", "m") as (a, b):
        options = (
            *("--upstream", a.url, "--upstream", b.url, "--state", str(tmp_path / "kept")),
            *("--admin-key-file", str(tmp_path / "admin")),
        )
        name = a.url.removeprefix("http://")
        for expected in (2, 1):
            async with gateway(*options) as api:
                api.client.headers["x-api-key"] = ADMIN
                assert len(await states(api)) == expected
                if expected == 2:
                    await remove(api, name)


async def test_without_a_file_to_keep_it_in_a_change_ends_with_the_gateway(tmp_path: Path) -> None:
    write(tmp_path / "admin", f"{ADMIN}\n")
    async with engines("m") as (a,), gateway("--admin-key-file", str(tmp_path / "admin")) as api:
        api.client.headers["x-api-key"] = ADMIN
        answer = await api.post("/admin/instances", entry(a, "a"))
        assert (answer.status_code, "warning" in answer.json()) == (201, False)
    assert [one.name for one in sorted_files(tmp_path)] == ["admin"]


async def test_a_change_that_cannot_be_written_is_in_force_and_says_so(tmp_path: Path) -> None:
    async with engines("m") as (a,):
        fleet(tmp_path)
        async with started(tmp_path, "--state", str(tmp_path / "none" / "kept")) as api:
            answer = await api.post("/admin/instances", entry(a, "a"))
            assert answer.status_code == 201
            assert answer.json()["warning"] == (
                "in force until the gateway restarts, for it could not be kept: "
                f"{tmp_path}/none/kept: cannot write: No such file or directory"
            )
            await api.until_ready(1)


async def test_a_kept_policy_that_is_not_known_any_more_does_not_stop_the_gateway(
    tmp_path: Path,
) -> None:
    fleet(tmp_path, policy="random")
    old = Kept(ways=Ways("gone", "fifo", ""), over=Ways("random", "adaptive", ""))
    write(tmp_path / "fleet.admin.json", dumps(old))
    async with started(tmp_path) as api:
        assert await policy(api) == ["random", "adaptive", ""]


# the file itself

MARKS = st.frozensets(st.builds(Mark, st.text(), st.text(), st.integers(0, 2**53)), max_size=3)
WAYS = st.none() | st.builds(Ways, st.text(), st.text(), st.text())
SPEC = UpstreamSpec("c", "http://h:1", ("m",), 2.0, 0.5, 7, 3, "", 2, 8)


@given(st.builds(Kept, st.sampled_from([(), (SPEC,)]), MARKS, MARKS, WAYS, WAYS))
def test_what_is_kept_is_read_as_it_was(kept: Kept) -> None:
    assert parse(dumps(kept), "kept") == kept


def test_a_key_file_is_never_kept() -> None:
    assert "key_file" not in dumps(Kept((UpstreamSpec("c", "http://h:1", key_file="/k"),)))


def kept_in(path: Path) -> KeptFile:
    """Two writes, so that there is a copy of the first."""
    file = KeptFile(str(path))
    file.read()
    file.write(Kept().drain(SPEC))
    file.write(Kept().add(SPEC))
    return file


def test_a_file_cut_anywhere_gives_way_to_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept_in(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        assert KeptFile(str(path)).read() == Kept().drain(SPEC), length
    assert (tmp_path / "kept.unreadable").read_bytes() == whole[: len(whole) - 2]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", '{"version": 2}', '{"version": 1}', "\0" * 100, "{" * 100_000),
        dumps(Kept()).replace('"added": []', '"added": [{"url": 1}]'),
        dumps(Kept()).replace('"removed": []', '"removed": [["a", "b"]]'),
        dumps(Kept()).replace('"ways": null', '"ways": ["a"]'),
    ],
)
def test_a_file_of_another_kind_is_put_aside_and_nothing_is_taken_from_it(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "kept"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError):
        parse(text, "kept")
    file = KeptFile(str(path))
    assert file.read() == Kept()
    assert (tmp_path / "kept.unreadable").read_text(encoding="utf-8") == text
    file.write(Kept().add(SPEC))
    assert KeptFile(str(path)).read() == Kept().add(SPEC)


def test_a_file_that_was_taken_away_stays_away(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept_in(path)
    path.unlink()
    assert KeptFile(str(path)).read() == Kept()


def test_what_is_not_new_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    file = kept_in(path)
    before = path.stat().st_ino
    file.write(Kept().add(SPEC))
    assert path.stat().st_ino == before


async def test_health_has_an_engine_s_own_threads_where_they_are_known(tmp_path: Path) -> None:
    async with engines("m", "n") as (a, b):
        fleet(tmp_path, {**entry(a, "a"), "max_workers": 2}, {**entry(b, "b"), "limit": 9})
        async with started(tmp_path) as api:
            await api.until_ready(2)
            models = (await api.get("/health")).json()["models"]
            assert {name: one["max_workers"] for name, one in models.items()} == {"m": 2, "n": 9}
