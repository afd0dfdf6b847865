"""Four real engines on one host and two on another: behind one gateway, and under our client."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from typing import Any

import pytest

from tests.rig import base, network
from tests.rig import rig as rigs
from tests.rig.claim import WORKTREE
from tests.rig.disk import Profile
from tests.rig.operate import Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.service_engine import need_engine

# Six engines load one after another where the machine is small.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

MODEL = "SmolLM2-135M-Instruct"
START_LIMIT_S = 900.0


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    need_engine()
    fleet = rigs.start(tuple(Profile(name=name, cards=0) for name in ("four", "two")))
    yield fleet
    fleet.remove()


@pytest.fixture
def fleet(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Generator[Operator]:
    made = operator(rig, tmp_path_factory.mktemp("operator"))
    made.writes(
        MODEL_PATH=str(base.MODELS),
        SHM_SIZE="256m",
        EXTRA_DOCKER_ARGS=base.docker_args(str(base.ENGINE)),
        EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1"
        " VLLM_CPU_OMP_THREADS_BIND=nobind",
        EXTRA_VLLM_ARGS="--enforce-eager",
        MAX_MODEL_LEN=512,
        ROUTING_STRATEGY="round_robin",
    )
    yield made
    made.runs("down", "--forget", "--yes", limit_s=300)


def start(fleet: Operator, host: str, count: int) -> tuple[str, float]:
    """What it printed, and how long it took."""
    words = ("instances", "start", MODEL, "--hosts", host, "--count", str(count), "--yes")
    began = time.monotonic()
    done = fleet.runs(*words, limit_s=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - began


def states(fleet: Operator) -> list[tuple[str, str]]:
    done = fleet.runs("instances", "check", "--json", limit_s=300)
    return [(one["name"], one["state"]) for one in json.loads(done.stdout)["instances"]]


def ask(rig: Rig, key: str, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0, **fields}
    request = urllib.request.Request(
        f"http://{rig.head.ip}:8000/generate",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        shown: dict[str, Any] = json.loads(answer.read())
    return shown


def sdk_calls(rig: Rig, *urls: str) -> dict[str, Any]:
    """Made beside the head's engines, which listen on loopback."""
    inside = ("nsenter", f"--net=/run/netns/{network.namespace(rig.number, rig.head.name)}")
    done = subprocess.run(
        (*inside, sys.executable, "-m", "tests.rig.sdk_calls", MODEL, *urls),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=WORKTREE,
    )
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_four_and_two_real_engines_answer_as_one(rig: Rig, fleet: Operator) -> None:
    head, other = rig.hosts
    shown, first_s = start(fleet, head.ip, 1)
    key = next(line for line in shown.splitlines() if line.startswith("API key")).split()[-1]
    _, more_s = start(fleet, head.ip, 4)
    first = {one["name"]: one for one in listed(fleet)}
    start(fleet, other.ip, 6)
    print(f"\n1 alone: {first_s:.0f} s, 3 more: {more_s:.0f} s")  # noqa: T201  # figures, with -s
    assert [one for one in listed(fleet) if one["name"] in first] == [*first.values()]
    assert states(fleet) == [(f"{MODEL}-{number}", "answers") for number in range(1, 7)]

    answers = [ask(rig, key) for _ in range(24)]
    assert all("Paris" in one["text"] for one in answers)
    assert len({one["instance"] for one in answers}) == 6

    near = [f"http://127.0.0.1:{port}/v1" for port in (8001, 8002, 8003, 8004)]
    found = sdk_calls(rig, *near, *(f"http://{other.ip}:{port}/v1" for port in (8001, 8002)))

    assert found["differs"] == {}
    assert "Paris" in found["asynchronous"]
    # A canary of the gateway may come on top.
    assert (found["mapped"], min(found["each"])) == (24, 4)
    assert sum(found["each"]) <= 24 + 6

    kill_one_engine(fleet, rig)
    assert all("Paris" in ask(rig, key)["text"] for _ in range(12))
    until(
        "all six answer again",
        lambda: all(state == "answers" for _, state in states(fleet)),
        limit_s=300,
        every_s=5,
    )


def listed(fleet: Operator) -> list[dict[str, Any]]:
    shown = json.loads(fleet.succeeds("instances", "list", "--json").stdout)["instances"]
    assert isinstance(shown, list)
    return [{key: one[key] for key in ("name", "host", "address", "state")} for one in shown]


def kill_one_engine(fleet: Operator, rig: Rig) -> None:
    """On the other host, in the middle of its life: the whole group of the second engine there."""
    command = "kill -KILL $(pgrep -f 'port 8002' | head -1)"
    rig.ssh(rig.hosts[1], command)
