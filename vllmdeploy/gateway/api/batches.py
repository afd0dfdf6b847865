"""/v1/batches: a file of requests worked off in the background, as OpenAI's API has it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from vllmdeploy.batch.records import PATHS
from vllmdeploy.gateway.api.answers import answer_json, body_object
from vllmdeploy.gateway.api.batches_run import Batches
from vllmdeploy.gateway.api.batches_store import Record
from vllmdeploy.gateway.api.files import page, part
from vllmdeploy.gateway.api.files_store import BATCH, new_id
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.jsonvalue import Object, as_object
from vllmdeploy.gateway.refusal import Refusal, try_again
from vllmdeploy.gateway.visit import Visit

_WINDOW = re.compile(r"([1-9][0-9]{0,3})h")
_WINDOW_MAX_H = 720
_UNFINISHED_MAX = 100
_PAGE_MAX = 100
_METADATA_MAX = 16
_KEY_MAX, _VALUE_MAX = 64, 512


def batches_of(gateway: Gateway) -> Batches:
    if gateway.batches is None:
        message = "this gateway keeps no batches: it was started without --files FOLDER"
        raise Refusal(501, message, code="files_off")
    return gateway.batches


async def create_batch(gateway: Gateway, visit: Visit) -> None:
    batches, owner = batches_of(gateway), visit.identity.owner
    record = _wanted(body_object(visit), owner)
    if batches.unfinished(owner) >= _UNFINISHED_MAX:
        message = f"{_UNFINISHED_MAX} batches of this key are not finished yet"
        raise Refusal(429, message, fields=try_again(60))

    def create() -> None:
        file = batches.store.files.get(owner, record.input_file_id)
        if file is None:
            raise Refusal(400, f"there is no file {record.input_file_id[:64]!r}")
        if file.purpose != BATCH or not file.bytes:
            raise Refusal(400, f"{file.id} is empty, or was not uploaded for a batch")
        try:
            batches.store.create(record)
        except OSError as error:
            message = f"the batch cannot be written: {error.strerror}"
            raise Refusal(507, message, code="files_full") from error

    await gateway.loop.run_in_executor(None, create)
    batches.add(record)
    answer_json(visit, record.public())


async def list_batches(gateway: Gateway, visit: Visit) -> None:
    batches, owner = batches_of(gateway), visit.identity.owner
    found = await gateway.loop.run_in_executor(None, batches.store.all, owner)
    answer_json(
        visit, page(visit, found, lambda one: one.id, lambda one: _public(batches, one), _PAGE_MAX)
    )


async def get_batch(gateway: Gateway, visit: Visit) -> None:
    answer_json(visit, _public(batches_of(gateway), await _batch(gateway, visit)))


async def cancel_batch(gateway: Gateway, visit: Visit) -> None:
    batches = batches_of(gateway)
    record = await _batch(gateway, visit)
    if record.is_final:
        raise Refusal(409, f"{record.id} is {record.status} already")
    await gateway.loop.run_in_executor(None, batches.store.ask_to_cancel, record)
    live = batches.live(record.id)
    if live is not None:
        batches.tell(live, "cancelled")
    answer_json(visit, _public(batches, record))


async def _batch(gateway: Gateway, visit: Visit) -> Record:
    batches, id_ = batches_of(gateway), part(visit, 2)
    owner = visit.identity.owner
    found = await gateway.loop.run_in_executor(None, batches.store.get, owner, id_)
    if found is None:
        raise Refusal(404, f"there is no batch {id_[:64]!r}", code="batch_not_found")
    return found


def _public(batches: Batches, record: Record) -> dict[str, object]:
    live = batches.live(record.id)
    if live is None or record.is_final:
        return record.public()
    found = live.seen().public()
    if live.waiting:
        found["waiting"] = live.waiting  # ours: OpenAI's batches have no word for it
    return found


def _wanted(body: Object, owner: str) -> Record:
    endpoint, file = body.get("endpoint"), body.get("input_file_id")
    if not isinstance(endpoint, str) or endpoint not in PATHS:
        raise Refusal(400, f"endpoint must be one of {', '.join(sorted(PATHS))}")
    if not isinstance(file, str) or not file:
        raise Refusal(400, "input_file_id must be the id of a file")
    window = body.get("completion_window")
    found = _WINDOW.fullmatch(window) if isinstance(window, str) else None
    if found is None or int(found[1]) > _WINDOW_MAX_H:
        raise Refusal(400, f"completion_window must be hours, as 24h, up to {_WINDOW_MAX_H}h")
    now = int(time.time())
    return Record(
        id=new_id("batch_"),
        owner=owner,
        endpoint=endpoint,
        input_file_id=file,
        completion_window=found[0],
        created_at=now,
        expires_at=now + int(found[1]) * 3600,
        metadata=_metadata(body.get("metadata")),
    )


def _metadata(value: object) -> Mapping[str, str] | None:
    if value is None:
        return None
    given = as_object(value)
    if given is None or len(given) > _METADATA_MAX:
        raise Refusal(400, f"metadata must be an object of up to {_METADATA_MAX} texts")
    found = {name: text for name, text in given.items() if isinstance(text, str)}
    if len(found) < len(given) or any(
        len(name) > _KEY_MAX or len(text) > _VALUE_MAX for name, text in found.items()
    ):
        message = f"metadata: names up to {_KEY_MAX} characters, texts up to {_VALUE_MAX}"
        raise Refusal(400, message)
    return found
