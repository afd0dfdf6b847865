"""Real vLLM servers behind the gateway, asked by `vllm bench serve`; prints JSON lines.

    python bench/gateway_engines.py --engine-python .venv-engine/bin/python --model DIR [PART ..]

`hits`: prompts that share beginnings over two engines whose caches hold half of them each; vLLM's
own prefix-cache hit rate under each policy, in turns. `alone`: one engine through the gateway and
without it, in pairs of two passes each. Keys, health checks, canaries, metrics and retries are on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_ENGINE = ("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16")
_PREFIXES, _PREFIX, _SUFFIX, _OUTPUT = 24, 256, 16, 4
_BLOCK, _BLOCKS = 32, 160  # tokens of cache: of 24 prefixes a bit more than half fit
_AT_ONCE = 8
_NAME, _KEY = "m", "sk-of-the-benchmark"
_READY_S = 900.0
_STOP_S = 20.0


@contextlib.contextmanager
def engines(python: str, model: str, ports: Sequence[int], *more: str) -> Generator[list[str]]:
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(_started(_engine(python, model, port, more), port, _ENVIRONMENT))
            for port in ports
        ]
        for url in urls:
            _until_well(url)
        yield urls


def _engine(python: str, model: str, port: int, more: Sequence[str]) -> tuple[str, ...]:
    return (
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
        *("--port", str(port), "--model", model, "--served-model-name", _NAME, *_ENGINE, *more),
    )


@contextlib.contextmanager
def gateway(folder: Path, port: int, upstreams: Sequence[str]) -> Generator[str]:
    for name in ("keys", "admin"):
        (folder / name).write_text(f"{_KEY}\n")
    argv = (
        *(sys.executable, "-m", "vllmdeploy.gateway", "--listen", f"127.0.0.1:{port}"),
        *("--api-keys-file", str(folder / "keys"), "--admin-key-file", str(folder / "admin")),
        *(word for url in upstreams for word in ("--upstream", url)),
    )
    with _started(argv, port, {}) as url:
        _until_well(url)
        yield url


@contextlib.contextmanager
def _started(argv: Sequence[str], port: int, environment: dict[str, str]) -> Generator[str]:
    with tempfile.TemporaryFile() as log, subprocess.Popen(
        argv, env={**os.environ, **environment}, stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()


def _until_well(url: str) -> None:
    end = time.monotonic() + _READY_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        assert time.monotonic() < end, f"{url} is not well"
        time.sleep(0.5)


def ask(python: str, model: str, url: str, *more: str) -> dict[str, Any]:
    """One run of `vllm bench serve`: what it found."""
    with tempfile.TemporaryDirectory() as folder:
        argv = (
            *(python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--base-url", url),
            *("--model", _NAME, "--tokenizer", model, "--endpoint", "/v1/completions"),
            *("--save-result", "--result-dir", folder, "--result-filename", "found.json"),
            *("--header", f"Authorization=Bearer {_KEY}", "--disable-tqdm", "--ignore-eos", *more),
        )
        done = subprocess.run(
            argv, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
    return found


def cache(urls: Sequence[str]) -> tuple[float, float]:
    """Tokens that were looked for in all prefix caches, and found there, as vLLM counts them."""
    sums = {"queries": 0.0, "hits": 0.0}
    for url in urls:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                for name in sums:
                    if line.startswith(f"vllm:prefix_cache_{name}_total{{"):
                        sums[name] += float(line.rpartition(" ")[2])
    return sums["queries"], sums["hits"]


def use(url: str, policy: str) -> None:
    request = urllib.request.Request(
        f"{url}/admin/policy",
        json.dumps({"routing": policy}).encode(),
        {"authorization": f"Bearer {_KEY}", "content-type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def hits(python: str, model: str, requests: int, rounds: int, policies: Sequence[str]) -> None:
    sizes = ("--block-size", str(_BLOCK), "--num-gpu-blocks-override", str(_BLOCKS))
    with (
        tempfile.TemporaryDirectory() as folder,
        engines(python, model, (8993, 8994), *sizes) as urls,
        gateway(Path(folder), 8992, urls) as url,
    ):
        for number in range(rounds):
            for policy in policies if number % 2 == 0 else policies[::-1]:
                use(url, policy)
                before = cache(urls)
                found = ask(
                    *(python, model, url, "--dataset-name", "prefix_repetition"),
                    *("--prefix-repetition-prefix-len", str(_PREFIX)),
                    *("--prefix-repetition-suffix-len", str(_SUFFIX)),
                    *("--prefix-repetition-num-prefixes", str(_PREFIXES)),
                    *("--prefix-repetition-output-len", str(_OUTPUT)),
                    *("--num-prompts", str(requests), "--max-concurrency", "4"),
                    *("--seed", str(1 + number * 10 + policies.index(policy))),
                )
                after = cache(urls)
                rate = (after[1] - before[1]) / (after[0] - before[0])
                show("hits", policy=policy, hit_rate=round(rate, 3), **_figures(found))


def alone(python: str, model: str, requests: int, pairs: int) -> None:
    # Both ways ask for the same: with a cache of prompts the second would be given what the first
    # had worked out.
    with (
        tempfile.TemporaryDirectory() as folder,
        engines(python, model, (8993,), "--no-enable-prefix-caching") as (engine,),
        gateway(Path(folder), 8992, (engine,)) as url,
    ):
        ratios: list[float] = []
        for number in range(pairs + 1):
            took: dict[str, list[float]] = {url: [], engine: []}
            # What the machine has for us changes within minutes by more than what is measured: the
            # way that begins also ends, so that a change that goes on weighs the same on both.
            for way in (url, engine, engine, url) if number % 2 else (engine, url, url, engine):
                found = ask(
                    *(python, model, way, "--dataset-name", "random"),
                    *("--random-input-len", "64", "--random-output-len", "32"),
                    *("--num-prompts", str(requests), "--max-concurrency", str(_AT_ONCE)),
                    *("--seed", str(number)),
                )
                assert found["completed"] == requests
                took[way].append(found["duration"])
            ratio = sum(took[engine]) / sum(took[url])
            show("pair", warm_up=number == 0, ratio=round(ratio, 3),
                 gateway_s=[round(one, 1) for one in took[url]],
                 engine_s=[round(one, 1) for one in took[engine]])  # fmt: skip
            if number:
                ratios.append(ratio)
        show("alone", median_ratio=round(statistics.median(ratios), 3), pairs=pairs)


def _figures(found: dict[str, Any]) -> dict[str, float]:
    return {
        "completed": found["completed"],
        "requests_per_s": round(found["request_throughput"], 2),
        "output_tokens_per_s": round(found["output_throughput"], 1),
        "first_token_p50_ms": round(found["median_ttft_ms"], 1),
        "first_token_p99_ms": round(found["p99_ttft_ms"], 1),
    }


def show(what: str, **figures: object) -> None:
    print(json.dumps({"what": what, **figures}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-python", required=True, metavar="PATH")
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="SmolLM2 or another small one"
    )
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2, help="of each policy")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("parts", nargs="*", metavar="PART", help="hits, alone; both if not given")
    given = parser.parse_args()
    python, model = given.engine_python, given.model
    parts = given.parts or ["hits", "alone"]
    if "hits" in parts:
        hits(python, model, given.requests, given.rounds, ("round_robin", "prefix_affinity"))
    if "alone" in parts:
        # Whole waves: with a last one half full, chance decides how long it takes.
        alone(python, model, given.requests // (2 * _AT_ONCE) * _AT_ONCE, given.pairs)


if __name__ == "__main__":
    main()
