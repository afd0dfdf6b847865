"""Two replicas under load take new settings over, and no request fails; a bad version stays out."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig import claim, own_machine
from tests.rig.own_machine import REAL_MODEL, Load, Machine
from tests.rig.service_engine import need_engine
from tests.support.fake_vllm import BAD_SEED, FRAIL_SEED

REQUESTS = 1_000
# Two engines load at once and then twice more in turns: minutes each on a busy machine.
_LIMIT_S = 900


@pytest.fixture
def pretended(tmp_path: Path) -> Generator[Machine]:
    machine = own_machine.pretended(tmp_path, "rolling")
    yield machine
    machine.goes()


@pytest.fixture
def real(tmp_path: Path) -> Generator[Machine]:
    need_engine()
    machine = own_machine.real(tmp_path, claim.WORKTREE, "rollingreal")
    yield machine
    machine.goes()


def restarted_under_load(machine: Machine, model: str, clients: int, *flags: str) -> list[int]:
    load = Load(machine, model, clients)
    try:
        machine.succeeds("restart-service", model, "--yes", *flags, limit_s=_LIMIT_S)
    finally:
        statuses = load.ends(after=REQUESTS)
    return statuses


def services(machine: Machine) -> list[str]:
    seen = json.loads(machine.runs("status", "--json").stdout)["services"]
    return [f"{one['service']}: {one['state']}" for one in seen]


def test_two_replicas_restart_under_load_and_no_request_fails(pretended: Machine) -> None:
    machine = pretended
    machine.succeeds("up", "--yes")
    started = machine.succeeds("start-service", "m", "1", "--replicas", "2", "--yes")
    assert '"model": "m", "prompt"' in started
    statuses = restarted_under_load(machine, "m", 4, "--max-model-len", "64")
    assert len(statuses) >= REQUESTS
    assert set(statuses) == {200}, statuses
    bad = machine.runs("restart-service", "m", "--yes", "--", "--seed", BAD_SEED)
    assert bad.returncode == 5, bad.stderr
    assert "RuntimeError: these weights are not for this model" in bad.stderr
    assert "undone: as before" in bad.stderr
    assert machine.asks("m") == 200
    again = machine.runs("restart-service", "m", "--dry-run", "--json")
    assert len(json.loads(again.stdout)["steps"]) == 12


def test_an_engine_that_dies_at_its_first_request_never_gets_one_of_a_user(
    pretended: Machine,
) -> None:
    machine = pretended
    machine.succeeds("up", "--yes")
    began = machine.runs("start-service", "m", "1", "--yes", "--", "--seed", FRAIL_SEED)
    assert began.returncode == 5, began.stderr
    assert "m does not start: exited with code 0 without being asked to" in began.stderr
    assert "EngineDeadError: CUDA error: an illegal memory access" in began.stderr
    assert "undone: as before" in began.stderr
    assert services(machine) == []
    gone = machine.runs("stop-service", "m", "--yes")
    assert (gone.returncode, "there is no service m" in gone.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_two_real_replicas_restart_under_load_and_no_request_fails(real: Machine) -> None:
    machine = real
    machine.succeeds("up", "--yes")
    machine.succeeds("start-service", REAL_MODEL, "1", "--replicas", "2", "--yes", limit_s=_LIMIT_S)
    statuses = restarted_under_load(machine, REAL_MODEL, 4, "--max-model-len", "128")
    assert len(statuses) >= REQUESTS
    assert set(statuses) == {200}, {status: statuses.count(status) for status in set(statuses)}
