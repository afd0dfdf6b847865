"""A real model ranks on a real vLLM, asked through the gateway on every route for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig import base
from tests.rig.service_engine import need_engine
from tests.support.running_gateway import Api, gateway
from vllmdeploy.core.command import Command, Result
from vllmdeploy.plan.rerank import RerankWanted, engine_arguments
from vllmdeploy.tools import vllm
from vllmdeploy.tools.vllm_engine import EngineSpec, argv

pytestmark = pytest.mark.long

MODEL = "all-MiniLM-L6-v2"
QUERY = "What is the capital of France?"
DOCUMENTS = [
    "Bananas are yellow.",
    "Paris is the capital of France.",
    "Berlin is the capital of Germany.",
]
_START_S = 300.0
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


def installed() -> vllm.Vllm:
    python = str(base.ENGINE / "bin/python")
    asked = subprocess.run(
        (python, *vllm.probe_argv()[1:]), capture_output=True, text=True, check=True, timeout=60
    )
    question = vllm.installed(Command(vllm.probe_argv()))
    return question.parse(Result(0, asked.stdout, asked.stderr))


def command(port: int) -> tuple[str, ...]:
    folder = base.MODELS / MODEL
    there = installed()
    wanted = RerankWanted(model=MODEL, max_workers=2)
    config = (folder / "config.json").read_text()
    engine = EngineSpec(
        model=str(folder),
        names=(MODEL,),
        port=port,
        executor="mp",
        task="rerank",
        max_num_seqs=4,
        arguments=("--enforce-eager", *engine_arguments(wanted, config, there)),
    )
    return (str(base.ENGINE / "bin/python"), *argv(engine, there)[1:])


@contextmanager
def engine(log: Path) -> Generator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        command(port),
        env={**os.environ, **_ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )

    def end() -> None:
        os.killpg(process.pid, signal.SIGKILL)

    too_late = threading.Timer(_START_S, end)
    too_late.start()
    said = process.stdout
    assert said is not None
    try:
        with log.open("w") as kept:
            for line in said:
                kept.write(line)
                if "Application startup complete" in line:
                    break
            else:
                pytest.fail(f"no engine within {_START_S:g} s:\n{log.read_text()[-2000:]}")
        # What it goes on saying has to go somewhere, or it would wait for a reader.
        threading.Thread(target=said.read, daemon=True).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        too_late.cancel()
        if process.poll() is None:
            end()
        process.wait(30)
        said.close()


async def test_paris_comes_first_on_every_route(tmp_path: Path) -> None:
    need_engine()
    with engine(tmp_path / "engine.log") as url:
        async with gateway("--upstream", url) as api:
            await api.until_ready(1)
            for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
                await _paris_first(api, path)
            await _paris_scores_most(api)
            listed = (await api.get("/v1/models")).json()["data"]
            assert [one["id"] for one in listed] == [MODEL]


async def _paris_first(api: Api, path: str) -> None:
    body = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "top_n": 2}
    answer = await api.post(path, body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [one["index"] for one in results] == [1, 2]
    assert results[0]["relevance_score"] > 0.8


async def _paris_scores_most(api: Api) -> None:
    for path in ("/score", "/v1/score"):
        answer = await api.post(path, {"model": MODEL, "text_1": QUERY, "text_2": DOCUMENTS})
        assert answer.status_code == 200, answer.text
        scores = [one["score"] for one in answer.json()["data"]]
        assert max(scores) == scores[1]
    answer = await api.post("/v1/embeddings", {"model": MODEL, "input": QUERY})
    assert len(answer.json()["data"][0]["embedding"]) == 384
