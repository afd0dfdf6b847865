"""The end of a batch: its output becomes files of its owner, in steps that may be done again."""

from __future__ import annotations

import time
from dataclasses import replace

from vllmdeploy.batch.entries import OK
from vllmdeploy.batch.journal import Journal, JournalFile
from vllmdeploy.gateway.api.batches_store import BatchStore, Record
from vllmdeploy.gateway.api.files_store import BATCH_OUTPUT, StoredFile, new_id


def finish(store: BatchStore, record: Record) -> Record:
    """`record` is on the disk as finalizing; returns it as it ended."""
    if record.output_file_id is None and record.error_file_id is None:
        record = _counted(store, record)
        store.save(record)
    journal = Journal(store.output(record))
    _hand_over(store, record, journal.results, record.output_file_id, "output")
    _hand_over(store, record, journal.errors, record.error_file_id, "errors")
    store.clear(record)
    record = record.at(record.ends_as, time.time())
    store.save(record)
    return record


def _counted(store: BatchStore, record: Record) -> Record:
    """Counts what is there, cuts what a kill tore, and gives names to what will be files."""
    journal = Journal(store.output(record))
    prompt = completion = ok = 0
    if not journal.exists():
        return record
    for stored in journal.load():
        ok += stored.head.kind == OK
        prompt += stored.head.prompt_tokens
        completion += stored.head.completion_tokens
    journal.begin()
    journal.close()
    return replace(
        record,
        output_file_id=new_id("file-") if journal.ok else None,
        error_file_id=new_id("file-") if journal.failed else None,
        total=max(record.total, len(journal.done)),
        completed=ok,
        failed=journal.failed,
        prompt_tokens=prompt,
        completion_tokens=completion,
    )


def _hand_over(
    store: BatchStore, record: Record, file: JournalFile, id_: str | None, kind: str
) -> None:
    if id_ is None or not file.exists():
        return
    name = f"{record.id}_{kind}.jsonl"
    size = file.path.stat().st_size
    known = StoredFile(id_, size, int(time.time()), name, BATCH_OUTPUT)
    store.files.add(record.owner, file.path, known)
