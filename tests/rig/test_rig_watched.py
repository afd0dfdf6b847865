"""`up --watch` on real hosts: what Docker does not undo, and a spare for a host that stays dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig import look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import JOIN_LIMIT_S, STATE, Operator, node, operator
from tests.rig.programs import until
from tests.rig.rig import Rig

pytestmark = pytest.mark.long

FLEET = tuple(Profile(name=name, cards=1) for name in ("first", "second", "extra"))


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start(FLEET)
    yield fleet
    fleet.remove()


@pytest.fixture(scope="module")
def made(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    """Two members and a spare."""
    one = operator(rig, tmp_path_factory.mktemp("operator"))
    lines = {host.name: "ray_gpus=1" for host in rig.hosts}
    one.writes_lines(lines | {"first": "head=yes ray_gpus=1", "extra": "ray_gpus=1 spare=yes"})
    one.up()
    return one


@contextmanager
def watching(made: Operator, *options: str) -> Generator[list[str]]:
    """The lines it says; ended by SIGTERM, as a service manager would."""
    said: list[str] = []
    program = subprocess.Popen(
        (str(Path(sys.prefix, "bin/vllmdeploy")), "up", "--watch", "--yes", *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=made.folder,
        env=made.rig.operator_environment(),
    )
    pipe = program.stderr
    assert pipe is not None
    reading = threading.Thread(target=lambda: said.extend(pipe), daemon=True)
    reading.start()
    try:
        until("it watches", lambda: "watching" in "".join(said), limit_s=60)
        yield said
    finally:
        os.kill(program.pid, signal.SIGTERM)
        try:
            code = program.wait(60)
        finally:
            program.kill()
        reading.join(10)
        pipe.close()
    assert code == 130, said
    assert "looked" in "".join(said), said
    made.hosts[0].sh(f"test ! -e {STATE}/lock")


def members(made: Operator) -> set[str]:
    return set(look.cluster(made.rig, head=made.rig.head))


def test_a_worker_that_was_killed_by_hand_is_back_without_a_person(
    rig: Rig, made: Operator
) -> None:
    worker = rig["second"]
    before = node(worker).id
    assert look.containers(rig["extra"]) == {}
    with watching(made, "--every", "1") as said:
        worker.sh("docker kill vllm-ray-worker")
        until("it runs again", lambda: node(worker).running, limit_s=JOIN_LIMIT_S)
        until(
            "Ray has it again",
            lambda: members(made) == {rig.head.ip, worker.ip},
            limit_s=2 * JOIN_LIMIT_S,
            every_s=0.5,
        )
    assert node(worker).id == before
    assert "start vllm-ray-worker (it is exited (137))" in "".join(said)


def test_a_spare_takes_the_place_of_a_dead_host_which_is_taken_away_when_it_is_back(
    rig: Rig, made: Operator
) -> None:
    dead, spare = rig["second"], rig["extra"]
    with watching(made, "--every", "1", "--spare-after", "5") as said:
        dead.power_off()
        until(
            "the spare is in Ray",
            lambda: members(made) == {rig.head.ip, spare.ip},
            limit_s=2 * JOIN_LIMIT_S,
            every_s=1,
        )
        dead.boot()
        until(
            "what ran there before is gone",
            lambda: look.containers(dead) == {},
            limit_s=JOIN_LIMIT_S,
            every_s=1,
        )
    until(
        "Ray has the spare and not the host",
        lambda: members(made) == {rig.head.ip, spare.ip},
        limit_s=60,
        every_s=1,
    )
    assert f"{spare.ip}: create vllm-ray-worker" in "".join(said)
    found = made.status()
    assert (found["second"]["state"], found["extra"]["state"]) == ("replaced", "ready")
    assert "nothing to do" in made.up().stderr
