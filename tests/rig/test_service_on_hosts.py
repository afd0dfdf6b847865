"""A real model over three hosts: served by Ray behind the gateway, and back after a kill."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Generator
from typing import Any

import pytest

from tests.rig import base, look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.service_engine import need_engine

MODEL = "SmolLM2-135M-Instruct"
FLEET = tuple(Profile(name=name, cards=1) for name in ("first", "second", "third"))
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def engine() -> None:
    need_engine()


@pytest.fixture(scope="module")
def rig(engine: None) -> Generator[Rig]:
    fleet = rigs.start(FLEET)
    yield fleet
    fleet.remove()


@pytest.fixture(scope="module")
def served(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Operator, str]:
    """The operator and the API key that was shown once."""
    made = operator(rig, tmp_path_factory.mktemp("operator"))
    made.writes(
        MODEL_PATH=str(base.MODELS),
        SHM_SIZE="256m",
        EXTRA_DOCKER_ARGS=base.docker_args(str(base.ENGINE)),
        EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1",
        EXTRA_VLLM_ARGS="--enforce-eager",
        MAX_MODEL_LEN=512,
        RAY_CPUS=2,
    )
    made.up()
    started = made.runs("start-service", MODEL, "3", "--yes", limit_s=400)
    assert started.returncode == 0, started.stderr
    shown = next(line for line in started.stdout.splitlines() if line.startswith("API key"))
    return made, shown.split()[-1]


def answer(rig: Rig, route: str, body: dict[str, Any], key: str) -> str:
    """From outside of the fleet, as a client would."""
    request = urllib.request.Request(
        f"http://{rig.head.ip}:8000{route}",
        json.dumps({"temperature": 0, "max_tokens": 8, **body}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as said:
        text: str = said.read().decode()
    return text


def ask(rig: Rig, route: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(answer(rig, route, body, key))
    return shown


def streamed(rig: Rig, route: str, body: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The events of a stream that came to its end."""
    lines = answer(rig, route, {**body, "stream": True}, key).split("\n")
    *events, done = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    assert done == "[DONE]"
    return [json.loads(one) for one in events]


def engine_processes(rig: Rig) -> dict[str, int]:
    """Ranks by host, as the hosts' own process lists have them."""
    return {
        host.name: sum("Worker" in line and "ray::" in line for line in look.processes(host))
        for host in rig.hosts
    }


def test_a_model_over_three_hosts_answers_through_the_gateway(
    rig: Rig, served: tuple[Operator, str]
) -> None:
    _, key = served
    assert "Paris" in ask(rig, "/generate", {"prompt": PROMPT}, key)["text"]
    (first,) = ask(rig, "/batch_generate", {"prompts": [PROMPT]}, key)["results"]
    assert "Paris" in first["text"]
    assert all(engine_processes(rig).values()), engine_processes(rig)


def test_it_answers_messages_and_streams_by_every_route(
    rig: Rig, served: tuple[Operator, str]
) -> None:
    _, key = served
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 16}
    assert "Paris" in ask(rig, "/generate", asked, key)["text"]
    (choice,) = ask(rig, "/v1/chat/completions", asked, key)["choices"]
    assert "Paris" in choice["message"]["content"]
    pieces = streamed(rig, "/generate", {"prompt": PROMPT}, key)
    assert "Paris" in "".join(piece.get("text", "") for piece in pieces)
    chunks = streamed(rig, "/v1/chat/completions", asked, key)
    said = [one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"]]
    assert "Paris" in "".join(said)


def test_status_says_on_which_hosts_it_has_cards(rig: Rig, served: tuple[Operator, str]) -> None:
    made, _ = served

    def placement() -> object:
        (service,) = json.loads(made.succeeds("status", "--json").stdout)["services"]
        return service["placement"]

    wanted = {host.ip: 1 for host in rig.hosts}
    until("status has all cards", lambda: placement() == wanted, limit_s=90, every_s=2)


def test_it_answers_the_shell_too(served: tuple[Operator, str]) -> None:
    made, _ = served
    assert "Paris" in made.succeeds("generate", PROMPT, "--max-tokens", "8").stdout


def test_what_cannot_be_served_is_refused_with_what_would_work(
    served: tuple[Operator, str],
) -> None:
    made, _ = served
    more = made.runs("start-service", MODEL, "2", "--name", "second", "--yes")
    assert (more.returncode, more.stdout) == (6, "")
    assert "9 attention heads cannot be divided by tensor parallel size 2" in more.stderr
    assert "2 cards are needed, 0 of 3 are free" in more.stderr
    assert f"{MODEL} holds 3" in more.stderr
    missing = made.runs("start-service", "no-such-model", "1", "--yes", "--", "--tensr-parallel=1")
    assert missing.returncode == 6
    assert "no-such-model: not there" in missing.stderr
    assert "has no --tensr-parallel" in missing.stderr


def test_a_killed_worker_comes_back_and_the_model_with_it(
    rig: Rig, served: tuple[Operator, str]
) -> None:
    _, key = served
    worker = rig.workers[-1]
    container = look.containers(worker)["vllm-ray-worker"]
    worker.sh(f"kill -KILL {container.pid}")

    def again() -> bool:
        try:
            return "Paris" in ask(rig, "/generate", {"prompt": PROMPT}, key)["text"]
        except OSError:
            return False

    until("the API stops answering", lambda: not again(), limit_s=30)
    until("the API answers again", again, limit_s=240, every_s=1)
    assert look.containers(worker)["vllm-ray-worker"].restarts == container.restarts + 1


def test_stopped_and_taken_down_it_leaves_its_cards_and_nothing_else(
    rig: Rig, served: tuple[Operator, str]
) -> None:
    made, _ = served
    made.succeeds("stop-service", MODEL, "--yes")
    assert not any(engine_processes(rig).values())
    unknown = made.runs("stop-service", MODEL, "--yes")
    assert (unknown.returncode, unknown.stderr.count("there is no service")) == (2, 1)
    made.down()
    assert [name for host in rig.hosts for name in look.containers(host)] == []
