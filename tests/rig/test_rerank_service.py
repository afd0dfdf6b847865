"""The rerank service as a new user meets it: one command, the printed line, status, stop."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import base, look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import Done, operator
from tests.rig.rig import Rig
from tests.rig.service_engine import need_engine

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MODEL = "all-MiniLM-L6-v2"
# Seed 001's, with the values of its small profile.
ENVIRONMENT = {
    "WORKERS": "1",
    "MAX_NUM_SEQS": "256",
    "MAX_NUM_BATCHED_TOKENS": "8192",
    "GPU_MEMORY_UTILIZATION": "0.6",
    "MAX_WORKERS": "2",
    "TENSOR_PARALLEL_SIZE": "1",
}
QUERY = "What is the capital of France?"
DOCUMENTS = [
    "Bananas are yellow.",
    "Paris is the capital of France.",
    "Berlin is the capital of Germany.",
]


@pytest.fixture
def rig() -> Generator[Rig]:
    need_engine()
    fleet = rigs.start((Profile(name="head", cards=0),))
    yield fleet
    fleet.remove()


class User:
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder, self.key = rig, folder, ""
        operator(
            rig,
            folder,
            MODEL_PATH=str(base.MODELS),
            SHM_SIZE="256m",
            EXTRA_DOCKER_ARGS=base.docker_args(str(base.ENGINE)),
            EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1"
            " VLLM_CPU_OMP_THREADS_BIND=nobind",
            EXTRA_VLLM_ARGS="--enforce-eager",
        )

    def runs(self, *words: str) -> Done:
        return self.rig.vllmdeploy(*words, folder=self.folder, env=ENVIRONMENT, limit_s=800)

    def succeeds(self, *words: str) -> str:
        done = self.runs(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def asks(self, path: str, body: dict[str, Any] | None = None) -> str:
        request = urllib.request.Request(
            f"http://{self.rig.head.ip}:8000{path}",
            None if body is None else json.dumps({"model": MODEL, **body}).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = answer.read().decode()
        return text


def test_one_command_serves_every_route_and_another_one_ends_it(rig: Rig, tmp_path: Path) -> None:
    user = User(rig, tmp_path)
    misspelt = user.runs("rerank", "start", "--model", MODEL, "--profile", "low-resorce", "--yes")
    assert (misspelt.returncode, "did you mean low-resource?" in misspelt.stderr) == (2, True)

    started = user.runs("rerank", "start", "--model", MODEL, "--yes")
    assert started.returncode == 0, started.stderr
    assert f"taken from the environment: {', '.join(ENVIRONMENT)}" in started.stderr
    lines = started.stdout.splitlines()
    user.key = next(line for line in lines if line.startswith("API key")).split()[-1]
    printed = next(line for line in lines if line.startswith("curl "))
    said = subprocess.run(("sh", "-c", printed), capture_output=True, text=True, check=True)
    assert json.loads(said.stdout)["results"][0]["index"] == 1

    answers_on_every_route(user)
    configuration_is_shown(user)

    user.succeeds("rerank", "stop", "--yes")
    assert json.loads(user.succeeds("rerank", "status", "--json")) == {"rerank": []}
    assert list(look.containers(rig.head)) == ["vllm-gateway"]
    user.succeeds("down", "--forget", "--yes")


def answers_on_every_route(user: User) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        asked = {"query": QUERY, "documents": DOCUMENTS, "top_n": 2}
        results = json.loads(user.asks(path, asked))["results"]
        assert [one["index"] for one in results] == [1, 2]
    scored = json.loads(user.asks("/score", {"text_1": QUERY, "text_2": DOCUMENTS}))["data"]
    assert max(scored, key=lambda one: float(one["score"]))["index"] == 1


def configuration_is_shown(user: User) -> None:
    health = json.loads(user.asks("/health"))["models"][MODEL]
    assert (health["instances"], health["tensor_parallel_size"]) == ({"ready": 1, "total": 1}, 1)
    assert health["max_num_seqs"] == 256
    assert health["max_workers"] == 2
    assert health["max_model_len"] > 0
    metrics = user.asks("/metrics")
    assert f'instance="{MODEL}-1"' in metrics
    assert "vllm:" in metrics
    (shown,) = json.loads(user.succeeds("rerank", "status", "--json"))["rerank"]
    configured = (shown["ready"], shown["max_num_seqs"], shown["max_num_batched_tokens"])
    assert configured == (1, 256, 8192)
    assert (shown["gpu_memory_utilization"], shown["max_workers"]) == (0.6, 2)
    assert "1 of 1" in user.succeeds("rerank", "status")
    (instance,) = json.loads(user.runs("status", "--json").stdout)["instances"]
    assert (instance["name"], instance["state"]) == (f"{MODEL}-1", "running")
