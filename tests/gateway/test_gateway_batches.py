"""/v1/files and /v1/batches with the official SDK, against a real gateway and engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.support.running_gateway import Api, engines, gateway, served, write
from tests.support.upstream import FakeEngine
from vllmdeploy.batch import instances
from vllmdeploy.gateway.api import batches_run

openai: Any = pytest.importorskip("openai")

PATIENCE_S = 60.0
FINAL = ("completed", "failed", "expired", "cancelled")


def row(number: int, **body: object) -> bytes:
    request = {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": f"p{number}"}], **body},
    }
    return json.dumps(request).encode() + b"\n"


def ok_then_stall(count: int) -> Callable[[int], str]:
    return lambda number: "ok" if number <= count else "stall"


def rows(count: int) -> bytes:
    return b"".join(row(number) for number in range(1, count + 1))


@contextlib.asynccontextmanager
async def sdk(api: Api, key: str = "none") -> AsyncGenerator[Any, None]:
    base = f"{api.client.base_url}/v1"
    http = httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S)
    async with openai.AsyncOpenAI(
        base_url=base, api_key=key, max_retries=0, http_client=http
    ) as client:
        yield client


async def batch_of(client: Any, data: bytes, **options: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        **options,
    )


async def ended(client: Any, batch: Any) -> Any:
    return await until(client, batch, lambda seen: seen.status in FINAL)


async def until(client: Any, batch: Any, holds: Callable[[Any], bool]) -> Any:
    async def look() -> Any:
        while not holds(seen := await client.batches.retrieve(batch.id)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return seen

    return await asyncio.wait_for(look(), PATIENCE_S)


async def lines(client: Any, file_id: str) -> list[dict[str, Any]]:
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


def found(folder: Path, pattern: str) -> list[Path]:
    return [*folder.glob(pattern)]


async def test_a_batch_from_upload_to_output(tmp_path: Path) -> None:
    async with (
        served("--files", str(tmp_path / "files")) as (api, (engine,)),
        sdk(api) as client,
    ):
        batch = await batch_of(client, rows(40), metadata={"for": "the report"})
        assert (batch.object, batch.status) == ("batch", "validating")
        seen = await ended(client, batch)
        assert seen.status == "completed"
        assert seen.metadata == {"for": "the report"}
        assert seen.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
        assert seen.usage.total_tokens == 40 * 5
        assert seen.error_file_id is None
        assert seen.expires_at - seen.created_at == 86_400
        assert seen.created_at <= seen.in_progress_at <= seen.finalizing_at <= seen.completed_at
        output = await lines(client, seen.output_file_id)
        assert {one["custom_id"] for one in output} == {f"row-{n}" for n in range(1, 41)}
        assert all(one["response"]["status_code"] == 200 for one in output)
        assert all(one["error"] is None for one in output)
        assert (await client.files.retrieve(seen.output_file_id)).purpose == "batch_output"
        assert [one.id async for one in client.batches.list()] == [batch.id]
        assert len(engine.asked) == 40
        assert found(tmp_path, "files/*/batches/*/output") == [], "what it needed is gone"


async def test_rows_that_cannot_be_answered_are_in_the_error_file(tmp_path: Path) -> None:
    other = b'{"custom_id":"o","method":"POST","url":"/v1/completions","body":{"prompt":"x"}}\n'
    data = row(1) + b"{oops\n" + row(1) + other + row(5, model="unknown") + b'{"prompt":"x"}\n'
    async with (
        served("--files", str(tmp_path)) as (api, _),
        sdk(api) as client,
    ):
        seen = await ended(client, await batch_of(client, data))
        assert seen.status == "completed"
        assert seen.request_counts.model_dump() == {"total": 6, "completed": 1, "failed": 5}
        errors = {one["line"]: one["error"] for one in await lines(client, seen.error_file_id)}
        assert {line: error["code"] for line, error in errors.items()} == {
            2: "bad_json",
            3: "doubled_custom_id",
            4: "bad_row",
            5: "http_404",
            6: "missing_key",
        }
        assert (
            errors[4]["message"] == "line 4: url must be /v1/chat/completions, the batch's endpoint"
        )
        assert errors[5]["message"].startswith("HTTP 404: the model 'unknown' is not served here")


async def test_files_are_listed_read_and_deleted(tmp_path: Path) -> None:
    async with (
        served("--files", str(tmp_path)) as (api, _),
        sdk(api) as client,
    ):
        made = [
            await client.files.create(file=(f"{n}.jsonl", b"x" * n), purpose="batch")
            for n in range(1, 6)
        ]
        assert (made[4].bytes, made[4].filename, made[4].purpose) == (5, "5.jsonl", "batch")
        assert {one.id async for one in client.files.list(limit=2)} == {one.id for one in made}
        first = await client.files.list(limit=2)
        assert (len(first.data), first.has_more) == (2, True)
        assert await client.files.retrieve(made[2].id) == made[2]
        assert (await client.files.content(made[2].id)).content == b"xxx"
        deleted = await client.files.delete(made[2].id)
        assert (deleted.id, deleted.deleted) == (made[2].id, True)
        with pytest.raises(openai.NotFoundError, match="there is no file"):
            await client.files.retrieve(made[2].id)
        for id_ in ("file-../../../etc/passwd", "file-" + "0" * 24, "x"):
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(id_)


async def test_a_large_file_comes_back_as_it_was_sent_and_is_held_in_no_memory(
    tmp_path: Path,
) -> None:
    data = os.urandom(1 << 20) * 40
    async with (
        served("--files", str(tmp_path), "--max-body", "1M") as (api, _),
        sdk(api) as client,
    ):
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, api.running._server.buffered)
                await asyncio.sleep(0)

        watching = asyncio.ensure_future(watch())
        file = await client.files.create(file=("large.bin", data), purpose="batch")
        watching.cancel()
        assert file.bytes == len(data)
        assert most < 1 << 20
        assert (await client.files.content(file.id)).content == data


async def test_what_is_no_upload_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with served("--files", str(tmp_path)) as (api, _):
        post = api.client.post
        file = {"file": ("a.jsonl", b"{}\n")}
        answers = [
            await post("/v1/files", json={"file": "x"}),
            await post("/v1/files", files=file, data={"purpose": "assistants"}),
            await post("/v1/files", files={"other": ("a", b"")}, data={"purpose": "batch"}),
            await post("/v1/files", files=file, data={"purpose": "batch" * 1000}),
            await post(
                "/v1/files",
                content=b"--b\r\nno name\r\n\r\n",
                headers={"content-type": "multipart/form-data; boundary=b"},
            ),
            await post("/v1/batches", json={"endpoint": "/v1/files"}),
            await post("/v1/batches", json={"endpoint": "/v1/score", "input_file_id": 1}),
            await post(
                "/v1/batches",
                json={"endpoint": "/v1/score", "input_file_id": "x", "completion_window": "1d"},
            ),
        ]
        assert [(one.status_code, one.json()["error"]["message"]) for one in answers][:5] == [
            (400, "the content type must be multipart/form-data with a boundary"),
            (400, "purpose must be 'batch', not 'assistants'"),
            (400, "the form has no `file`"),
            (400, "the field purpose is too long"),
            (400, "a part has no name"),
        ]
        assert [one.status_code for one in answers[5:]] == [400, 400, 400]
        assert found(tmp_path, "*/files/*") == []


async def test_without_a_folder_there_are_none() -> None:
    async with served() as (api, _):
        for answer in (await api.get("/v1/files"), await api.get("/v1/batches")):
            assert answer.status_code == 501
            assert "started without --files" in answer.json()["error"]["message"]


async def test_a_full_folder_refuses_uploads_and_holds_batches_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_run, "_AGAIN_S", 0.02)
    async with (
        served("--files", str(tmp_path), "--files-size", "300K") as (api, (engine,)),
        sdk(api) as client,
    ):
        kept = await client.files.create(file=("a", b"x" * 250_000), purpose="batch")
        with pytest.raises(openai.APIStatusError, match="room for files is full") as full:
            await client.files.create(file=("b", b"x" * 10_000_000), purpose="batch")
        assert full.value.status_code == 507
        engine.mode = "gate"
        batch = await batch_of(client, rows(20))
        await until(client, batch, lambda seen: seen.status == "in_progress")
        ballast = tmp_path / "anybody" / "files" / "ballast"
        ballast.write_bytes(b"x" * 100_000)
        waiting = await until(client, batch, lambda seen: "waiting" in seen.model_extra)
        assert waiting.model_extra["waiting"].startswith("the gateway's room for files is full")
        await client.files.delete(kept.id)
        engine.mode = "ok"
        engine.gate.set()
        assert (await ended(client, batch)).request_counts.completed == 20


async def test_keys_see_their_own_files_and_batches_only(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, "ann:ann-secret\nbob-secret-1\nother-secret models=x\n")
    async with served("--files", str(tmp_path / "files"), "--api-keys-file", str(keys)) as (api, _):
        async with sdk(api, "ann-secret") as ann, sdk(api, "bob-secret-1") as bob:
            batch = await ended(ann, await batch_of(ann, rows(3)))
            assert batch.status == "completed"
            assert [one.id async for one in bob.files.list()] == []
            assert [one.id async for one in bob.batches.list()] == []
            for asking in (
                bob.batches.retrieve(batch.id),
                bob.batches.cancel(batch.id),
                bob.files.content(batch.output_file_id),
                bob.files.delete(batch.output_file_id),
            ):
                with pytest.raises(openai.NotFoundError):
                    await asking
            mine = await bob.files.create(file=("b", rows(1)), purpose="batch")
            with pytest.raises(openai.BadRequestError, match="there is no file"):
                await ann.batches.create(
                    input_file_id=mine.id,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                )
            # The line of a key without a name may come to be another's.
            write(keys, "new-secret-2\nann:ann-secret\nbob-secret-1\n")
            async with sdk(api, "new-secret-2") as new:
                await api.until(lambda: _accepted(new))
                assert [one.id async for one in new.files.list()] == []
            assert [one.id async for one in bob.files.list()] == [mine.id]
        async with sdk(api, "nobody") as nobody:
            with pytest.raises(openai.AuthenticationError):
                await nobody.files.list()


async def test_what_a_key_may_not_do_its_batch_may_not_do_either(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, "ann:ann-secret models=other\n")
    async with (
        served("--files", str(tmp_path / "files"), "--api-keys-file", str(keys)) as (api, _),
        sdk(api, "ann-secret") as client,
    ):
        seen = await ended(client, await batch_of(client, rows(2)))
        assert seen.request_counts.failed == 2
        errors = await lines(client, seen.error_file_id)
        assert "this key may not use the model m" in errors[0]["error"]["message"]


async def test_a_batch_whose_key_is_taken_away_fails_and_keeps_what_it_has(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, "ann:ann-secret\nbob:bob-secret\n")
    async with (
        served("--files", str(tmp_path / "files"), "--api-keys-file", str(keys)) as (api, (one,)),
        sdk(api, "ann-secret") as client,
    ):
        one.mode = "gate"
        batch = await batch_of(client, rows(40))
        await until(client, batch, lambda seen: seen.status == "in_progress")
        write(keys, "bob:bob-secret\n")
        await api.until(lambda: _refused(client))
        one.gate.set()
        await api.until(lambda: _ended_on_disk(tmp_path))
        write(keys, "ann:ann-secret\n")
        await api.until(lambda: _accepted(client))
        seen = await client.batches.retrieve(batch.id)
        assert seen.status == "failed"
        assert "the key of this batch is gone" in seen.errors.data[0].message


async def _refused(client: Any) -> bool:
    return not await _accepted(client)


async def _accepted(client: Any) -> bool:
    try:
        await client.models.list()
    except openai.AuthenticationError:
        return False
    return True


async def _ended_on_disk(folder: Path) -> bool:
    (record,) = found(folder, "files/*/batches/*/batch.json")
    return json.loads(record.read_bytes())["status"] in FINAL


async def test_a_cancelled_batch_keeps_what_it_has(tmp_path: Path) -> None:
    async with (
        served("--files", str(tmp_path), "--limit", "4") as (api, (engine,)),
        sdk(api) as client,
    ):
        engine.mode = ok_then_stall(10)
        batch = await batch_of(client, rows(50))
        await until(client, batch, lambda seen: seen.request_counts.completed == 10)
        cancelling = await client.batches.cancel(batch.id)
        assert cancelling.status in ("cancelling", "cancelled")
        seen = await ended(client, batch)
        assert seen.status == "cancelled"
        assert seen.request_counts.model_dump() == {"total": 50, "completed": 10, "failed": 0}
        assert len(await lines(client, seen.output_file_id)) == 10
        with pytest.raises(openai.ConflictError, match="is cancelled already"):
            await client.batches.cancel(batch.id)


async def test_a_batch_that_waits_for_its_turn_is_cancelled_at_once(tmp_path: Path) -> None:
    async with (
        served("--files", str(tmp_path)) as (api, (engine,)),
        sdk(api) as client,
    ):
        engine.mode = "gate"
        made = [await batch_of(client, rows(2)) for _ in range(4)]
        await until(client, made[1], lambda seen: seen.status == "in_progress")
        assert (await client.batches.retrieve(made[3].id)).status == "validating"
        await client.batches.cancel(made[3].id)
        assert (await ended(client, made[3])).status == "cancelled"
        assert (await client.batches.retrieve(made[0].id)).status == "in_progress"


async def test_a_batch_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = SimpleNamespace(time=lambda: time.time() + 86_400)
    monkeypatch.setattr(batches_run, "time", late)
    async with (
        served("--files", str(tmp_path)) as (api, (engine,)),
        sdk(api) as client,
    ):
        engine.mode = "gate"
        seen = await ended(client, await batch_of(client, rows(2)))
        assert seen.status == "expired"


async def test_a_running_batch_goes_on_when_the_gateway_starts_again(tmp_path: Path) -> None:
    async with engines("m") as (engine,):
        options = ("--files", str(tmp_path), "--upstream", engine.url)
        engine.mode = ok_then_stall(20)
        async with gateway(*options) as api, sdk(api) as client:
            await api.until_ready(1)
            batch = await batch_of(client, rows(60))
            await until(client, batch, lambda seen: seen.request_counts.completed == 20)
        engine.mode = "ok"
        async with gateway(*options) as api, sdk(api) as client:
            seen = await ended(client, batch)
            assert seen.status == "completed"
            assert seen.request_counts.model_dump() == {"total": 60, "completed": 60, "failed": 0}
            output = await lines(client, seen.output_file_id)
            assert len({one["custom_id"] for one in output}) == len(output) == 60


async def test_two_gateways_share_a_folder_and_one_runs_the_batch(tmp_path: Path) -> None:
    """As while a new gateway takes over from the old one."""
    async with engines("m") as (engine,):
        options = ("--files", str(tmp_path), "--upstream", engine.url)
        engine.mode = ok_then_stall(5)
        async with contextlib.AsyncExitStack() as later:
            async with gateway(*options) as old, sdk(old) as client:
                await old.until_ready(1)
                batch = await batch_of(client, rows(30))
                await until(client, batch, lambda seen: seen.request_counts.completed == 5)
                new = await later.enter_async_context(gateway(*options))
                await new.until_ready(1)
            engine.mode = "ok"
            client = await later.enter_async_context(sdk(new))
            seen = await ended(client, batch)
            assert seen.request_counts.completed == 30
            assert len(await lines(client, seen.output_file_id)) == 30


async def test_rows_count_like_requests_in_metrics_and_for_the_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    write(keys, "ann:ann-secret\n")
    async with (
        served("--files", str(tmp_path / "files"), "--api-keys-file", str(keys)) as (api, _),
        sdk(api, "ann-secret") as client,
    ):
        await ended(client, await batch_of(client, rows(7)))
        page = (await api.get("/metrics")).text
        assert 'requests_total{route="/v1/chat/completions",model="m",status="2xx"} 7\n' in page
        assert re.search(r'key_tokens_total\{key="ann"\} 21\b', page)
        assert re.search(r'key_requests_total\{key="ann"\} 7\b', page)


async def test_an_outage_makes_no_error_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "outage_delay", lambda *_: 0.05)
    engine = await FakeEngine(model="m").start()
    port = engine.port
    async with (
        gateway("--files", str(tmp_path), "--upstream", engine.url) as api,
        sdk(api) as client,
    ):
        await api.until_ready(1)
        engine.mode = ok_then_stall(10)
        batch = await batch_of(client, rows(30))
        await until(client, batch, lambda seen: seen.request_counts.completed == 10)
        await engine.stop()
        waiting = await until(client, batch, lambda seen: "waiting" in seen.model_extra)
        assert waiting.status == "in_progress"
        again = await FakeEngine(model="m", port=port).start()
        try:
            seen = await ended(client, batch)
        finally:
            await again.stop()
        assert seen.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
