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
        effort=Effort(concurrency=concurrency, timeout_s=60),
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
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

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


def show(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bare-rows", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, upstream() as url:
        base = Path(folder)
        small, large = base / "bare.jsonl", base / "large.jsonl"
        write_rows(small, wanted.bare_rows)
        write_rows(large, wanted.rows)
        bare_rate = wanted.bare_rows / asyncio.run(
            bare(rows(wanted.bare_rows), url, wanted.concurrency)
        )
        own_rate = wanted.bare_rows / batch(small, base / "same", url, wanted.concurrency)
        show(
            figure="rows/s at the same concurrency",
            rows=wanted.bare_rows,
            concurrency=wanted.concurrency,
            bare_httpx=round(bare_rate),
            batch=round(own_rate),
            times=round(own_rate / bare_rate, 2),
        )
        seconds = batch(large, base / "large", url, wanted.concurrency)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        show(
            figure="whole run",
            rows=wanted.rows,
            seconds=round(seconds, 1),
            rows_per_s=round(wanted.rows / seconds),
            peak_mib=round(peak),
        )
        done = wanted.rows // 2
        write_rows(small, done + 1)
        show(
            figure="resume to the first new row",
            rows_done=done,
            seconds=round(resume(small, base / "resume", url, done), 2),
        )


if __name__ == "__main__":
    main()
