"""/v1/files: what batches read and what they write, as OpenAI's API has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeVar
from urllib.parse import parse_qs

from vllmdeploy.gateway.api.answers import answer_json
from vllmdeploy.gateway.api.files_multipart import BadForm, boundary_of
from vllmdeploy.gateway.api.files_store import FileStore, StoredFile
from vllmdeploy.gateway.api.files_upload import Upload
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.gateway.visit import Visit

_PIECE = 256 * 1024
_BINARY = (b"content-type", b"application/octet-stream")

Listed = TypeVar("Listed")


def store_of(gateway: Gateway) -> FileStore:
    if gateway.files is None:
        message = "this gateway keeps no files: it was started without --files FOLDER"
        raise Refusal(501, message, code="files_off")
    return gateway.files


def receive(gateway: Gateway, visit: Visit) -> Upload:
    """Sees the head alone, and refuses what is no upload before any of it is sent."""
    store = store_of(gateway)
    try:
        boundary = boundary_of(visit.exchange.head.text(b"content-type"))
    except BadForm as error:
        raise Refusal(400, str(error)) from error
    return Upload(store, visit.identity.owner, boundary)


async def upload(_: Gateway, visit: Visit) -> None:
    if visit.upload is None:
        raise RuntimeError("an upload came without its sink")
    answer_json(visit, (await visit.upload.finish()).public())


async def list_files(gateway: Gateway, visit: Visit) -> None:
    store, owner = store_of(gateway), visit.identity.owner
    purpose = query(visit).get("purpose", "")
    found = await gateway.loop.run_in_executor(None, store.all, owner)
    wanted = [one for one in found if not purpose or one.purpose == purpose]
    answer_json(visit, page(visit, wanted, lambda one: one.id, StoredFile.public, 10_000))


async def get_file(gateway: Gateway, visit: Visit) -> None:
    answer_json(visit, (await _file(gateway, visit)).public())


async def delete_file(gateway: Gateway, visit: Visit) -> None:
    file = await _file(gateway, visit)
    store = store_of(gateway)
    await gateway.loop.run_in_executor(None, store.delete, visit.identity.owner, file.id)
    answer_json(visit, {"id": file.id, "object": "file", "deleted": True})


async def content(gateway: Gateway, visit: Visit) -> None:
    file = await _file(gateway, visit)
    path = store_of(gateway).content(visit.identity.owner, file.id)
    try:
        opened = await gateway.loop.run_in_executor(None, lambda: path.open("rb"))
    except FileNotFoundError as error:
        raise _unknown(file.id) from error
    try:
        exchange = visit.exchange
        exchange.start(200, (_BINARY, (b"x-request-id", visit.id)), file.bytes)
        if exchange.head.method != "HEAD":
            await _send(gateway, visit, opened)
        exchange.finish()
    finally:
        opened.close()


async def _send(gateway: Gateway, visit: Visit, opened: BinaryIO) -> None:
    """No faster than the client reads: a piece waits in memory, not the file."""
    exchange, free = visit.exchange, asyncio.Event()

    def flow(paused: bool) -> None:
        if not paused:
            free.set()

    exchange.flow = flow
    try:
        while piece := await gateway.loop.run_in_executor(None, opened.read, _PIECE):
            exchange.write(piece)
            while exchange.paused:
                free.clear()
                await free.wait()
    finally:
        exchange.flow = None


async def _file(gateway: Gateway, visit: Visit) -> StoredFile:
    store, owner = store_of(gateway), visit.identity.owner
    id_ = part(visit, 2)
    found = await gateway.loop.run_in_executor(None, store.get, owner, id_)
    if found is None:
        raise _unknown(id_)
    return found


def _unknown(id_: str) -> Refusal:
    return Refusal(404, f"there is no file {id_[:64]!r}", code="file_not_found")


def part(visit: Visit, index: int) -> str:
    """Of the path, as in /v1/files/ID."""
    return visit.exchange.head.path.strip("/").split("/")[index]


def query(visit: Visit) -> dict[str, str]:
    try:
        found = parse_qs(visit.exchange.head.query, max_num_fields=32)
    except ValueError as error:
        raise Refusal(400, "too many parameters") from error
    return {name: values[-1] for name, values in found.items()}


def page(
    visit: Visit,
    found: Sequence[Listed],
    id_of: Callable[[Listed], str],
    public: Callable[[Listed], dict[str, object]],
    most: int,
) -> dict[str, object]:
    """`found` is the newest first; `after`, `limit` and `order` are the caller's."""
    given = query(visit)
    ordered = list(found)
    if given.get("order") == "asc":
        ordered.reverse()
    limit = given.get("limit", str(most))
    if not limit.isdigit() or not 1 <= int(limit) <= most:
        raise Refusal(400, f"limit must be from 1 to {most}")
    ids = [id_of(one) for one in ordered]
    after = given.get("after", "")
    start = ids.index(after) + 1 if after in ids else 0
    if after and not start:
        raise Refusal(400, f"after: there is no {after[:64]!r}")
    shown = ordered[start : start + int(limit)]
    return {
        "object": "list",
        "data": [public(one) for one in shown],
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
        "has_more": start + len(shown) < len(ordered),
    }
