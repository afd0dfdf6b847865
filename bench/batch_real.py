"""Rows a second on one real vLLM engine: `batch run`, a bare httpx loop, and `vllm run-batch`.

.venv/bin/python bench/batch_real.py    (after scripts/engine.sh)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

from batch import bare, batch, show

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_ENGINE = ("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64")
_NAME = "fake"  # what the other measurements of `batch run` call their model
_PORT = 8991
_READY_S = 300.0
_STOP_S = 20.0
_EQUAL = 0.97  # two runs of one of them differ by that much


def write_rows(path: Path, count: int, tokens: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            body = {
                "model": _NAME,
                "messages": [{"role": "user", "content": f"Is {number} even?"}],
                "max_tokens": tokens,
                "min_tokens": tokens,
                "temperature": 0,
            }
            row = {
                "custom_id": f"row-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def engine(python: str, model: str) -> Generator[str]:
    argv = (
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
        *("--port", str(_PORT), "--model", model, "--served-model-name", _NAME, *_ENGINE),
    )
    url = f"http://127.0.0.1:{_PORT}"
    with subprocess.Popen(
        argv, env={**os.environ, **_ENVIRONMENT}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            until = time.monotonic() + _READY_S
            while not _well(url):
                assert process.poll() is None, "the engine ended"
                assert time.monotonic() < until, "the engine is not well"
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()


def _well(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def run_batch_of_vllm(python: str, model: str, source: Path, output: Path) -> tuple[float, float]:
    """Seconds from its first word of the batch to its output, which it writes at the end of all
    rows, and of the whole program."""
    argv = (
        *(python, "-m", "vllm.entrypoints.cli.main", "run-batch", "-i", str(source)),
        *("-o", str(output), "--model", model, "--served-model-name", _NAME, *_ENGINE),
    )
    began = time.time()
    first = 0.0
    with subprocess.Popen(
        argv, env={**os.environ, **_ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        seen = b""
        while piece := os.read(process.stdout.fileno(), 4096):
            seen = (seen + piece)[-65536:]
            if not first and b"Running batch" in seen:
                first = time.time()
    assert process.returncode == 0, seen.decode(errors="replace")[-2000:]
    assert first, "its words are not those we know"
    return output.stat().st_mtime - first, time.time() - began


def measure(wanted: argparse.Namespace, base: Path) -> None:
    source, count = base / "in.jsonl", wanted.rows
    write_rows(source, count, wanted.tokens)
    with engine(wanted.engine_python, wanted.model) as url:
        batch(source, base / "warm", url, wanted.concurrency)
        own = count / batch(source, base / "own", url, wanted.concurrency)
        with source.open("rb") as lines:
            plain = count / asyncio.run(bare(iter(lines), url, wanted.concurrency))
        again = count / batch(source, base / "again", url, wanted.concurrency)
    working, whole = run_batch_of_vllm(
        wanted.engine_python, wanted.model, source, base / "vllm.jsonl"
    )
    mine, theirs = (own + again) / 2, count / working
    rates = {
        "rows_per_s": [round(own, 2), round(again, 2)],
        "httpx": round(plain, 2),
        "run_batch": round(theirs, 2),
        "run_batch_with_its_start": round(count / whole, 2),
    }
    for name, peer, rate in (("run-batch", "vllm run-batch", theirs), ("real", "httpx", plain)):
        show(
            name,
            f"rows/s on a real engine, times {peer}",
            round(mine / rate, 3),
            target=f">= {_EQUAL}",
            holds=mine / rate >= _EQUAL,
            n=count,
            **rates,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine-python", default=".venv-engine/bin/python")
    parser.add_argument("--model", default=".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=64)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(wanted, Path(folder))


if __name__ == "__main__":
    main()
