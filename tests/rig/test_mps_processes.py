"""MPS under engines that are processes of this machine: a stand-in for NVIDIA's daemon, real
wardens."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.plan.service_builders import CONFIG
from tests.rig import fake_vllm
from tests.rig.test_rig_instances import Machine, machine
from tests.support import mps_stand_in


@pytest.fixture
def with_mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Machine]:
    card = mps_stand_in.CARD.format(secrets.randbits(40))
    for name, value in mps_stand_in.install(tmp_path / "tools", [card]).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "models/m").mkdir(parents=True)
    (tmp_path / "models/m/config.json").write_text(CONFIG)
    keys = {
        "ACCELERATOR": "nvidia",
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps"),
        "CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "log"),
    }
    with machine(tmp_path, fake_vllm.interpreter(tmp_path), tmp_path / "models", **keys) as made:
        yield made
        made.runs("mps", "stop", "--force", "--yes")


def test_a_fault_is_named_and_the_group_starts_anew_with_its_daemon(with_mps: Machine) -> None:
    made, pipe = with_mps, with_mps.folder / "mps/card-0"
    ports = f"{made.ports[0]},{made.ports[1]}"
    made.succeeds("instances", "start", "m", "--per-card", "2", "--ports", ports, "--yes")
    before = {name: int(made.engine(name)["pid"]) for name in ("m-1", "m-2")}
    daemon = int((pipe / "nvidia-cuda-mps-control.pid").read_text())
    for pid in before.values():
        mps_stand_in.ask(pipe, f"attach {pid}", {})
    mps_stand_in.ask(pipe, "fault", {})

    shown = made.succeeds("mps", "status")
    for name, pid in before.items():
        assert f"(pid {pid}) in {made.cluster}-instance-{name}\n" in shown
    assert "a client's fault stopped all engines of this server" in shown
    refused = made.runs("mps", "stop", "--yes")
    assert refused.returncode == 6
    assert f"of {made.cluster}-instance-m-1" in refused.stderr

    made.succeeds("mps", "restart", "--cards", "0", "--yes")
    after = {name: int(made.engine(name)["pid"]) for name in ("m-1", "m-2")}
    assert not set(before.values()) & set(after.values())
    assert int((pipe / "nvidia-cuda-mps-control.pid").read_text()) != daemon
    assert made.states() == {"m-1": "running", "m-2": "running"}
    assert "stopped all engines" not in made.succeeds("mps", "status")

    stranger = os.getpid()
    mps_stand_in.ask(pipe, f"attach {stranger}", {})
    spared = made.runs("mps", "restart", "--yes")
    assert spared.returncode == 6
    assert f"(pid {stranger})" in spared.stderr
    assert {name: int(made.engine(name)["pid"]) for name in after} == after


def test_a_daemon_that_died_is_noticed_and_comes_back_before_its_engines(
    with_mps: Machine,
) -> None:
    made, pipe = with_mps, with_mps.folder / "mps/card-0"
    ports = f"{made.ports[0]},{made.ports[1]}"
    made.succeeds("instances", "start", "m", "--per-card", "2", "--ports", ports, "--yes")
    os.kill(int((pipe / "nvidia-cuda-mps-control.pid").read_text()), signal.SIGKILL)
    names = f"{made.cluster}-instance-m-1, {made.cluster}-instance-m-2"
    assert f"without their daemon, as after a reboot: {names}" in made.succeeds("mps", "status")
    made.succeeds("mps", "restart", "--yes")
    rows = json.loads(made.succeeds("mps", "status", "--json"))["daemons"]
    ours = [row for row in rows if row["daemon"] and row["daemon"]["pipe"] == str(pipe)]
    assert [(row["state"], row["remarks"]) for row in ours] == [("running", [])]
    assert made.states() == {"m-1": "running", "m-2": "running"}
