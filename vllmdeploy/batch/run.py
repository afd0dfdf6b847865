"""A batch run end to end: check, resume, call, verify, name the files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from vllmdeploy.batch import loops
from vllmdeploy.batch.calls import HttpCalls
from vllmdeploy.batch.compact import DoneSet, SeenIds
from vllmdeploy.batch.conclude import REPORT, SUMMARY, Finished, conclude
from vllmdeploy.batch.durable import make_folder
from vllmdeploy.batch.instances import Instances
from vllmdeploy.batch.job import Job, check_same, describe, read_job, write_job
from vllmdeploy.batch.journal import ERRORS, RESULTS, Journal
from vllmdeploy.batch.limits import Pace
from vllmdeploy.batch.lines import Survey, open_input, read_lines, stamp, survey
from vllmdeploy.batch.lock import hold
from vllmdeploy.batch.loops import Stop
from vllmdeploy.batch.models import only_model
from vllmdeploy.batch.prefix import grouped
from vllmdeploy.batch.records import BadRow, Row, Shape, note_custom_id, parse_line
from vllmdeploy.batch.rowcalls import RowCalls, Steps
from vllmdeploy.batch.runner import Bounds, Listener, Runner
from vllmdeploy.batch.spec import BatchSpec
from vllmdeploy.batch.transport import Transport
from vllmdeploy.errors import UsageError
from vllmdeploy.routing.policies.registry import create

_SHOWN = 20
_MODELS_S = 10.0

Say: TypeAlias = Callable[[str], None]
# Makes the transport within the run's own loop, for answers that take at most so many seconds.
Connect: TypeAlias = Callable[[float], Transport]


@dataclass(frozen=True, slots=True)
class _Around:
    """Whom a run tells, what it calls with, who may end it."""

    listener: Listener
    say: Say
    connect: Connect
    stop: Stop | None


def run_batch(
    spec: BatchSpec,
    *,
    listener: Listener,
    say: Say,
    connect: Connect | None = None,
    stop: Stop | None = None,
) -> Finished:
    """Returns when every row is in exactly one of the two files; `Stopped` where `stop` asked."""

    def by_http(timeout: float) -> Transport:
        return HttpCalls(key=spec.key, timeout=timeout)

    around = _Around(listener, say, connect or by_http, stop)
    with open_input(spec.input) as file:
        make_folder(spec.output)
        _check_apart(spec)
        with hold(spec.output):
            found = survey(file)
            journal = Journal(spec.output)
            try:
                job = _settle_job(spec, file, found, journal, around)
                _call_rows(spec, file, found, journal, job, around)
            finally:
                journal.close()
            if stamp(file) != found.stamp:
                raise UsageError(
                    f"{spec.input}: the input was changed while the batch ran",
                    hint="put the old input back, or begin again with --restart",
                )
            return conclude(spec, journal, job)


def _check_apart(spec: BatchSpec) -> None:
    names = (RESULTS, ERRORS, SUMMARY, REPORT, f"{RESULTS}.part", f"{ERRORS}.part")
    for name in names:
        path = spec.output / name
        if path.exists() and path.samefile(spec.input):
            raise UsageError(
                f"{spec.input}: is the input and would be the output too",
                hint="name another folder with -o",
            )


def _settle_job(
    spec: BatchSpec, file: BinaryIO, found: Survey, journal: Journal, around: _Around
) -> Job:
    stored = read_job(spec.output)
    if stored is None and journal.exists():
        raise UsageError(
            f"{spec.output}: holds {RESULTS} that no batch run made", hint="name another folder"
        )
    model = spec.model
    if model is None and stored is not None and not spec.restart:
        model = stored.settings.get("model")
    elif model is None and spec.endpoint is None and _needs_model(spec, file):
        model = _ask_model(spec, around)
    job = describe(spec.input, found, spec.settings(model))
    if stored is not None and not spec.restart:
        check_same(spec.output, stored, job)
    if spec.strict:
        _refuse_bad_rows(spec, file, model)
    if stored is None or spec.restart:
        journal.restart()
        write_job(spec.output, job)
    return job


def _needs_model(spec: BatchSpec, file: BinaryIO) -> bool:
    """The first usable row tells: rows name their model, or none does."""
    for item in _parsed(spec, file, spec.shape(None), DoneSet()):
        if isinstance(item, Row):
            return "model" not in item.body
    return False


def _ask_model(spec: BatchSpec, around: _Around) -> str:
    async def ask() -> str:
        calls = around.connect(min(_MODELS_S, spec.effort.timeout_s))
        try:
            return await only_model(
                spec.upstreams,
                calls,
                say=around.say,
                give_up_after_s=spec.effort.give_up_after_s,
                chance=random.Random(),
            )
        finally:
            await calls.close()

    return loops.run(ask, around.stop)


def _parsed(
    spec: BatchSpec, file: BinaryIO, shape: Shape, done: DoneSet
) -> Iterator[Row | BadRow | None]:
    seen = SeenIds()
    for line in read_lines(file, spec.max_line_bytes):
        if line.number in done:
            note_custom_id(line, seen)
            yield None
        else:
            yield parse_line(line, shape, seen)


def _refuse_bad_rows(spec: BatchSpec, file: BinaryIO, model: str | None) -> None:
    problems: list[str] = []
    count = 0
    for item in _parsed(spec, file, spec.shape(model), DoneSet()):
        if isinstance(item, BadRow):
            count += 1
            if len(problems) < _SHOWN:
                problems.append(f"  {spec.input}:{item.line}: {item.reason}")
    if count > _SHOWN:
        problems.append(f"  and {count - _SHOWN} more")
    if count:
        raise UsageError(
            "\n".join((f"{count} lines cannot be used; nothing was sent:", *problems)),
            hint="mend them, or leave out --strict: they become error rows",
        )


def _call_rows(
    spec: BatchSpec,
    file: BinaryIO,
    found: Survey,
    journal: Journal,
    job: Job,
    around: _Around,
) -> None:
    for _ in journal.load():
        pass
    complete = journal.exists() and len(journal.done) == found.lines
    if complete and not (spec.retry_errors and journal.failed):
        return
    journal.begin()
    if spec.retry_errors:
        journal.drop_errors()
    model = job.settings.get("model")
    rows = _parsed(spec, file, spec.shape(model), journal.done)
    if spec.effort.by_prefix:
        rows = grouped(rows)
    loops.run(lambda: _serve(spec, model, rows, found.lines, journal, around), around.stop)


async def _serve(
    spec: BatchSpec,
    model: str | None,
    rows: Iterator[Row | BadRow | None],
    total: int,
    journal: Journal,
    around: _Around,
) -> None:
    effort, chance = spec.effort, random.Random()
    policy = create("prefix_affinity" if effort.by_prefix else effort.policy)
    instances = Instances(spec.upstreams, policy, cap=spec.concurrency, chance=chance)
    calls = around.connect(effort.timeout_s)
    per_minute = effort.tokens_per_minute
    row_calls = RowCalls(
        instances,
        calls,
        Steps(
            model=model,
            parse=spec.parser(),
            retries=effort.retries,
            repairs=effort.repairs,
            include_input=spec.include_input,
            by_prefix=effort.by_prefix,
        ),
        chance=chance,
        row_pace=Pace(effort.rows_per_second) if effort.rows_per_second else None,
        token_pace=Pace(per_minute / 60, burst_s=60) if per_minute else None,
        price=effort.price,
    )
    bounds = Bounds(spec.concurrency, effort.max_cost, effort.give_up_after_s)
    runner = Runner(
        rows, total, journal, row_calls, instances, bounds=bounds, listener=around.listener
    )
    try:
        await runner.run()
    finally:
        await calls.close()
