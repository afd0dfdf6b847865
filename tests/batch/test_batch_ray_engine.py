"""`batch run --engine ray` with real vLLM on real Ray: an engine and the run itself are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = ROOT / ".venv-engine/bin/python"
MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct"
NAME = "model"  # a link of the test's own: by its path its engines are told from all others
ROWS = 40
PATIENCE_S = 600.0

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (ENGINE_PYTHON.exists() and MODEL.exists()), reason="scripts/engine.sh was not run"
    ),
]


@pytest.fixture
def cluster() -> Generator[dict[str, str]]:
    """The environment of a client of a Ray cluster whose Python has vLLM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    folder = tempfile.mkdtemp(prefix="vr", dir="/tmp")  # Ray refuses long paths
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    quiet["RAY_worker_niceness"] = "0"  # or a busy machine never gets to the engine
    ray = (str(ENGINE_PYTHON), "-m", "ray.scripts.scripts", "start", "--head", "--block")
    head = subprocess.Popen(
        (*ray, "--port", port, "--temp-dir", folder, "--include-dashboard=false",
         "--num-cpus", "2", "--num-gpus", "0"),
        env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        listening(int(port))
        yield {**quiet, "VLLMDEPLOY_RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        head.terminate()
        head.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


def listening(port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until


@contextmanager
def running(folder: Path, cluster: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    words = ("batch", "run", "in.jsonl", "-o", "out", "--engine", "ray", "--tensor-parallel", "0")
    with subprocess.Popen(
        (
            sys.executable,
            "-m",
            "vllmdeploy",
            *words,
            "--model",
            str(folder / NAME),
            "--concurrency",
            "4",
        ),
        cwd=folder,
        env={
            **cluster,
            "PYTHONPATH": str(ROOT),
            "VLLMDEPLOY_EXTRA_VLLM_ARGS": "--enforce-eager --max-model-len 256",
            "VLLMDEPLOY_EXTRA_ENV": "VLLM_CPU_KVCACHE_SPACE=1",
        },
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[bytes], output: Path, rows: int) -> None:
    part = output / "results.jsonl.part"
    patience = time.monotonic() + PATIENCE_S
    while not part.exists() or part.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < patience
        time.sleep(0.1)  # the machine is the engine's


def engines(folder: Path) -> list[int]:
    """The API servers, not the guards that started them."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"vllm.entrypoints.openai.api_server" in words[1:3]
            and str(folder / NAME).encode() in words
        ):
            found.append(int(process.name))
    return found


def test_rows_of_real_engines_are_whole_after_an_engine_and_the_run_are_killed(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    ask = {"max_tokens": 4, "temperature": 0}
    rows = ({"prompt": f"{number} and one is", **ask} for number in range(ROWS))
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / NAME).symlink_to(MODEL)
    output = tmp_path / "out"
    with running(tmp_path, cluster) as process:
        until(process, output, 5)
        (engine,) = engines(tmp_path)
        os.kill(engine, signal.SIGKILL)
        until(process, output, 20)
        process.kill()
        process.wait()
    with running(tmp_path, cluster) as process:
        assert process.wait(PATIENCE_S) == 0
    lines = [json.loads(line) for line in (output / "results.jsonl").read_bytes().splitlines()]
    assert sorted(line["line"] for line in lines) == list(range(1, ROWS + 1))
    assert {line["run"]["instance"] for line in lines} == {"engine-1"}
    assert engines(tmp_path) == [], "an engine ends with the run that had it"
