"""What an output folder holds and who works on it, for `batch status` in another shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.batch import progress
from vllmdeploy.batch.job import read_job
from vllmdeploy.batch.journal import Journal
from vllmdeploy.batch.lock import holder
from vllmdeploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class Status:
    """`state` is running, stopped (the same command goes on) or finished."""

    state: str
    input: str
    total: int
    ok: int
    failed: int
    holder: str = ""
    progress: Mapping[str, object] | None = None


def read_status(folder: Path) -> Status:
    job = read_job(folder)
    if job is None:
        raise UsageError(f"{folder}: no batch run has begun here", hint="vllmdeploy batch run")
    who = holder(folder)
    latest = progress.load(folder)
    if who is not None and latest is not None:
        ok, failed = (int(str(latest[name])) for name in ("ok", "failed"))
        return Status("running", job.input, job.lines, ok, failed, who, latest)
    journal = Journal(folder)
    for _ in journal.load():
        pass
    state = "running" if who else "stopped"
    if who is None and journal.results.final.exists() and len(journal.done) == job.lines:
        state = "finished"
    return Status(state, job.input, job.lines, journal.ok, journal.failed, who or "")
