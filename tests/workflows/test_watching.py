"""`up --watch`, round by round, on hosts that pretend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.scripted_hosts import ScriptedFleet
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.errors import HostUnreachable
from vllmdeploy.workflows.mend import Watch

Rounds = Callable[[], list[str]]


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    """Up, on two hosts."""
    monkeypatch.chdir(open_folder)
    Path("config.env").write_text(
        "HEAD_HOST=gpu-01\nIMAGE=vllm:1\nACCELERATOR=cpu\nMODEL_PATH=/data/models\n", "utf-8"
    )
    Path("worker_nodes.txt").write_text("gpu-01 head=yes ray_gpus=2\ngpu-02 ray_gpus=2\n", "utf-8")
    made = ScriptedFleet(open_folder, "gpu-01", "gpu-02")
    with pytest.raises(SystemExit) as ended:
        main(["up", "--yes"], World(connect=made.connect))
    assert ended.value.code == 0
    return made


class Watched:
    def __init__(self, fleet: ScriptedFleet) -> None:
        world = World(connect=fleet.connect)
        self.now = 0.0
        self.said: list[str] = []
        self.watch = Watch(
            loaded=world.loaded(),
            sessions=world.session,
            say=self.said.append,
            on_event=lambda _: None,
            every_s=1,
            spare_after_s=60,
            clock=lambda: self.now,
        )

    def round(self) -> list[str]:
        """What this round had to say."""
        self.said.clear()
        self.watch.round()
        return list(self.said)


def stops(fleet: ScriptedFleet, host: str, node: str) -> None:
    """As `docker kill` leaves it, which Docker never undoes."""
    container = fleet[host].folder / "containers" / node
    container.write_text(container.read_text().replace("running", "exited"))


def test_a_container_that_was_killed_by_hand_is_started_again(fleet: ScriptedFleet) -> None:
    watched = Watched(fleet)
    assert watched.round() == []
    stops(fleet, "gpu-02", "vllm-ray-worker")
    said = watched.round()
    assert said[0] == "gpu-02: start vllm-ray-worker (it is exited (0))"
    assert "docker start vllm-ray-worker" in fleet["gpu-02"].changes[-1]
    assert watched.round() == []
    assert str(watched.watch.tally) == "looked 3 times: 2 steps done, 0 failed"
    assert not (fleet["gpu-01"].state / "lock").exists()


def test_a_host_that_does_not_answer_is_said_once_and_keeps_nobody_from_being_mended(
    fleet: ScriptedFleet,
) -> None:
    watched = Watched(fleet)
    fleet.failures["gpu-02"] = HostUnreachable("gpu-02", "no route to host")
    assert watched.round() == ["gpu-02: no route to host"]
    stops(fleet, "gpu-01", "vllm-ray-head")
    assert watched.round()[0] == "gpu-01: start vllm-ray-head (it is exited (0))"
    fleet.failures.clear()
    assert watched.round()[0] == "host gpu-02: well again"


def test_while_another_operator_is_at_work_nothing_is_done(fleet: ScriptedFleet) -> None:
    watched = Watched(fleet)
    stops(fleet, "gpu-02", "vllm-ray-worker")
    held = fleet["gpu-01"].state / "lock"
    held.mkdir()
    for name in ("holder", "heartbeat"):
        (held / name).write_text("")
    (said,) = watched.round()
    assert said.startswith("left alone: gpu-01: locked by somebody")
    assert not any("docker start" in line for line in fleet.changes)
    for name in ("holder", "heartbeat"):
        (held / name).unlink()
    held.rmdir()
    assert watched.round()[0] == "gpu-02: start vllm-ray-worker (it is exited (0))"


def test_what_another_operator_has_decided_is_not_undone(fleet: ScriptedFleet) -> None:
    watched = Watched(fleet)
    container = fleet["gpu-02"].folder / "containers/vllm-ray-worker"
    text = container.read_text()
    at = text.index('fingerprint":"') + len('fingerprint":"')
    container.write_text(text[:at] + "another00000" + text[at + 12 :])
    before = fleet.changes
    assert watched.round() == ["gpu-02: made with other settings; `vllmdeploy up` asks about it"]
    assert watched.round() == []
    assert fleet.changes == before


def test_what_cannot_be_mended_is_tried_again_later(fleet: ScriptedFleet) -> None:
    watched = Watched(fleet)
    stops(fleet, "gpu-02", "vllm-ray-worker")
    fleet["gpu-02"].fails("start", "Error: no space left on device\n")
    said = watched.round()
    assert "no space left on device" in said[-2]
    assert said[-1] == "gpu-02: tried again in 30 s"
    assert watched.round() == []
    watched.now = 30
    (fleet["gpu-02"].folder / "fail-start").unlink()
    assert watched.round()[0] == "gpu-02: start vllm-ray-worker (it is exited (0))"


def test_a_spare_takes_the_place_of_a_host_that_stays_dead_and_keeps_it(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(open_folder)
    Path("config.env").write_text("HEAD_HOST=gpu-01\nIMAGE=vllm:1\nACCELERATOR=cpu\n", "utf-8")
    Path("worker_nodes.txt").write_text(
        "gpu-01 head=yes ray_gpus=1\ngpu-02 ray_gpus=1\ngpu-03 ray_gpus=1 spare=yes\n", "utf-8"
    )
    fleet = ScriptedFleet(open_folder, "gpu-01", "gpu-02", "gpu-03")
    with pytest.raises(SystemExit) as ended:
        main(["up", "--yes"], World(connect=fleet.connect))
    assert ended.value.code == 0
    assert fleet["gpu-03"].changes == []
    watched = Watched(fleet)
    fleet.failures["gpu-02"] = HostUnreachable("gpu-02", "no route to host")
    node = open_folder / "nodes/gpu-02"
    alive = node.read_text()
    node.write_text(alive.replace('"alive":true', '"alive":false'))
    watched.round()
    watched.now = 59
    assert watched.round() == []
    watched.now = 60
    said = watched.round()
    assert "gpu-03: create vllm-ray-worker (not found)" in said
    assert watched.round() == []
    fleet.failures.clear()
    node.write_text(alive)
    assert watched.round()[:3] == [
        "host gpu-02: well again",
        "gpu-02: stop vllm-ray-worker (gpu-03 has its place)",
        "gpu-02: remove vllm-ray-worker (gpu-03 has its place)",
    ]
    assert watched.round() == []
