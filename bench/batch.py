"""Rows a second, memory and resume time of a batch, beside a bare asyncio and httpx loop.

    python bench/batch.py [--rows 1000000] [--bare-rows 20000] [--concurrency 64]

Prints one JSON object a line. The upstream answers at once, so all that is seen is our own cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import httpx

from vllmdeploy.batch.entries import Entry, Head, Response, format_entry, read_head
from vllmdeploy.batch.job import describe, write_job
from vllmdeploy.batch.journal import Journal
from vllmdeploy.batch.lines import survey
from vllmdeploy.batch.progress import Progress
from vllmdeploy.batch.run import run_batch
from vllmdeploy.batch.spec import BatchSpec, Effort
from vllmdeploy.batch.urls import upstreams_of

_UPSTREAM = Path(__file__).with_name("batch_upstream.py")
_TURNS = 3


@contextlib.contextmanager
def upstream() -> Generator[str]:
    with subprocess.Popen(
        (sys.executable, str(_UPSTREAM)), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def rows(count: int) -> Iterator[bytes]:
    for index in range(count):
        body = {"model": "fake", "messages": [{"role": "user", "content": f"Is {index} even?"}]}
        row = {
            "custom_id": f"row-{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        yield json.dumps(row).encode() + b"\n"


def write_rows(path: Path, count: int) -> None:
    with path.open("wb") as file:
        file.writelines(rows(count))


def batch(source: Path, output: Path, url: str, concurrency: int) -> float:
    """Seconds from start to the named files."""
    spec = BatchSpec(
        source,
        output,
        upstreams_of([url]),
        model="fake",
        effort=Effort(concurrency=concurrency),
    )
    began = time.perf_counter()
    finished = run_batch(spec, listener=_quiet, say=lambda _: None)
    seconds = time.perf_counter() - began
    assert finished.failed == 0
    return seconds


def _quiet(_: Progress) -> None:
    return


async def bare(lines: Iterator[bytes], url: str, concurrency: int) -> float:
    """What one would write in an afternoon: as many workers, httpx, results appended to a file."""
    began = time.perf_counter()
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    with tempfile.TemporaryFile("w") as out:
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=600) as client:

            async def work() -> None:
                for line in lines:
                    row = json.loads(line)
                    answer = await client.post(row["url"], json=row["body"])
                    result = {"custom_id": row["custom_id"], "response": answer.json()}
                    out.write(json.dumps(result) + "\n")

            await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.perf_counter() - began


def half_done(source: Path, output: Path, done: int) -> None:
    """An output folder as a run that was killed after `done` rows leaves it."""
    output.mkdir()
    with source.open("rb") as file:
        settings = BatchSpec(source, output, ()).settings("fake")
        write_job(output, describe(source, survey(file), settings))
    journal = Journal(output)
    journal.begin()
    answer = Response(200, "chatcmpl-0", upstream_body())
    for line in range(1, done + 1):
        head = Head(line, time.time(), 0.01, 1, 9, 1, "ok", "http://127.0.0.1:8000")
        journal.append(line, "ok", format_entry(Entry(head, f"row-{line - 1}", answer)))
    journal.close()


def upstream_body() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}}
    return json.dumps({"id": "chatcmpl-0", "choices": [choice] * 2}).encode()


def resume(source: Path, output: Path, url: str, done: int) -> float:
    """Seconds from the start to the first row that is new."""
    half_done(source, output, done)
    began = time.time()
    batch(source, output, url, 64)
    with (output / "results.jsonl").open("rb") as file:
        file.seek(-4096, 2)
        head = read_head(file.read().splitlines()[-1])
    assert head is not None
    return head.at - began


def show(
    name: str, figure: str, value: float, *, target: str, holds: bool | None, **more: object
) -> None:
    record = {"id": f"batch-{name}", "figure": figure, "value": value, "target": target}
    print(json.dumps({**record, "pass": holds, **more}), flush=True)


def beside_bare(base: Path, url: str, count: int, concurrency: int) -> None:
    """Both in turns, so that a busy moment of the machine does not fall on one alone."""
    source = base / "bare.jsonl"
    write_rows(source, count)
    own: list[float] = []
    plain: list[float] = []
    for number in range(_TURNS):
        plain.append(count / asyncio.run(bare(rows(count), url, concurrency)))
        own.append(count / batch(source, base / f"same-{number}", url, concurrency))
    times = statistics.median(mine / other for mine, other in zip(own, plain, strict=True))
    show(
        "httpx",
        f"rows/s, times a bare httpx loop, {concurrency} at once",
        round(times, 2),
        target=">= 1",
        holds=times >= 1,
        n=count,
        own=[round(rate) for rate in own],
        httpx=[round(rate) for rate in plain],
    )


def whole_run(base: Path, url: str, count: int, concurrency: int) -> None:
    source = base / "large.jsonl"
    write_rows(source, count)
    seconds = batch(source, base / "large", url, concurrency)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = round(count / seconds)
    show("rows", "rows/s of a whole run", rate, target="", holds=None, n=count, seconds=seconds)
    show("memory", "peak MiB of it", round(peak), target="< 300", holds=peak < 300, n=count)
    source.unlink()
    shutil.rmtree(base / "large")


def resumed(base: Path, url: str, done: int) -> None:
    source = base / "resumed.jsonl"
    write_rows(source, done + 1)
    seconds = resume(source, base / "resume", url, done)
    figure = "seconds from a resume to its first new row"
    show("resume", figure, round(seconds, 2), target="< 10", holds=seconds < 10, n=done)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bare-rows", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, upstream() as url:
        base = Path(folder)
        whole_run(base, url, wanted.rows, wanted.concurrency)
        resumed(base, url, wanted.rows // 2)
        beside_bare(base, url, wanted.bare_rows, wanted.concurrency)


if __name__ == "__main__":
    main()
