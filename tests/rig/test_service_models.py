"""A model that hosts lack is brought to them before its service starts or comes back."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.plan.test_service_capacity import LLAMA_8B
from tests.rig import base, fake_vllm, look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.operate import Operator, operator
from tests.rig.rig import Rig
from tests.support import sparse_model

MODELS, ENGINE, MODEL = "/srv/models", "/srv/vllm", "Small"
FLEET = (Profile(name="first", cards=1), Profile(name="second", cards=1))
MIB = 2**20


def on_disk(host: Host, path: str) -> Path:
    return host.disk.root / path.removeprefix("/")


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    """Two hosts with a vLLM that only pretends; a model lies on the head alone."""
    fleet = rigs.start(FLEET)
    try:
        for host in fleet.hosts:
            on_disk(host, MODELS).mkdir(parents=True)
            fake_vllm.interpreter(on_disk(host, ENGINE))
        sparse_model.lay(on_disk(fleet.head, f"{MODELS}/{MODEL}"), LLAMA_8B, 64 * MIB)
        yield fleet
    finally:
        fleet.remove()


@pytest.fixture(scope="module")
def made(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    fleet = operator(
        rig,
        tmp_path_factory.mktemp("operator"),
        MODEL_PATH=MODELS,
        EXECUTOR="mp",
        EXTRA_DOCKER_ARGS=f"{base.docker_args(ENGINE)} -v {ENGINE}:{ENGINE}:ro",
    )
    fleet.up()
    return fleet


def ready_on(host: Host) -> bool:
    return on_disk(host, f"{MODELS}/{MODEL}/.vllmdeploy/READY").exists()


def steps(made: Operator, *argv: str) -> list[str]:
    done = made.succeeds(*argv, "--json")
    return [f"{one['verb']} {one['subject']}" for one in json.loads(done.stdout)["steps"]]


def test_a_start_brings_the_model_first_and_up_brings_it_back(made: Operator) -> None:
    head, other = made.hosts
    refused = made.runs("start-service", MODEL, "1", "--yes")
    assert refused.returncode == 6
    assert f"vllmdeploy model sync {MODEL}" in refused.stderr  # put there by hand: not known whole
    made.succeeds("model", "verify", MODEL)

    shown = steps(made, "start-service", MODEL, "1", "--dry-run")
    assert shown.index(f"receive model {MODEL}") < shown.index(f"write service {MODEL}")
    assert not ready_on(other)
    too_many = made.runs("start-service", MODEL, "3", "--yes")
    assert too_many.returncode == 6, too_many.stderr
    assert not ready_on(other)  # what is refused anyhow brings nothing

    started = made.succeeds("start-service", MODEL, "1", "--yes")
    assert f"model {MODEL} is lacking on {other.ip}: it goes first" in started.stderr
    assert ready_on(other)
    assert "nothing to do" in made.succeeds("up", "--yes").stderr

    other.sh('rm -rf "$1"', f"{MODELS}/{MODEL}")
    assert steps(made, "plan") == []  # the service has its one rank on the head
    made.succeeds("model", "sync", MODEL, "--yes")
    head.sh('rm -rf "$1"', f"{MODELS}/{MODEL}")
    assert f"receive model {MODEL}" in steps(made, "plan")
    brought = made.up()
    assert f"model {MODEL} is lacking on {head.ip}: it goes first" in brought.stderr
    assert ready_on(head)
    made.succeeds("stop-service", MODEL, "--yes")
    made.down()
    assert [name for host in made.hosts for name in look.containers(host)] == []
