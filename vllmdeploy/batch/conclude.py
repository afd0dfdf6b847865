"""The end of a run: everything counted again from the files, put into words, and named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from vllmdeploy.batch.durable import replace_file
from vllmdeploy.batch.job import Job
from vllmdeploy.batch.journal import ERRORS, RESULTS, Journal, verify
from vllmdeploy.batch.order import sort_journal
from vllmdeploy.batch.report import render
from vllmdeploy.batch.spec import BatchSpec
from vllmdeploy.batch.stats import Stats
from vllmdeploy.batch.strictjson import load_object

SUMMARY = "summary.json"
REPORT = "report.html"


class Paths(NamedTuple):
    results: Path
    errors: Path
    summary: Path
    report: Path


@dataclass(frozen=True, slots=True)
class Finished:
    paths: Paths
    summary: Mapping[str, object]

    @property
    def failed(self) -> int:
        return cast("int", self.summary["failed"])


def conclude(spec: BatchSpec, journal: Journal, job: Job) -> Finished:
    if spec.order == "input":
        sort_journal(journal, job.lines)
    stats = _count(spec.output, job.lines)
    summary: dict[str, object] = {
        "input": job.input,
        "input_sha256": job.sha256,
        "settings": dict(job.settings),
        **stats.summary(),
    }
    if spec.hooks.aggregate is not None:
        summary["aggregate"] = spec.hooks.aggregate(_results(journal.results.path))
    paths = Paths(*(spec.output / name for name in (RESULTS, ERRORS, SUMMARY, REPORT)))
    replace_file(paths.summary, json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")
    note = f"{job.input}, {job.lines} rows, model {job.settings.get('model', 'as each row says')}"
    page = render(stats, title=f"Batch {spec.input.name}", note=note, font=spec.font)
    replace_file(paths.report, page.encode("utf-8", "replace"))
    journal.finish()
    return Finished(paths, summary)


def _count(folder: Path, lines: int) -> Stats:
    """Adds up what is in the files, not what this run thinks it wrote."""
    stats = Stats()
    errors = Journal(folder).errors.path
    for stored in verify(folder, lines):
        stats.add(stored.head)
        if stats.wants_example(stored.head.kind):
            stats.add_example(stored.head.kind, _message(errors, stored.offset, stored.size))
    return stats


def _message(path: Path, offset: int, size: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        error = cast("dict[str, object]", load_object(file.read(size))["error"])
    return str(error["message"])


def _results(path: Path) -> Iterator[Mapping[str, object]]:
    with path.open("rb") as file:
        for line in file:
            yield load_object(line)
