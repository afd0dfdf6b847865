"""MPS over SSH, with a stand-in for NVIDIA's daemon, and a real container that finds it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.rig import cards
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.operate import Operator, operator
from tests.rig.rig import Rig
from tests.support import mps_stand_in
from vllmdeploy.core.spec import ContainerSpec, MpsDoor
from vllmdeploy.plan import mps_share
from vllmdeploy.tools import docker

CARD = mps_stand_in.CARD.format(7)
PIPE, LOG = "/tmp/nvidia-mps/card-0", "/tmp/nvidia-log/card-0"


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start((Profile(name="head"),))
    try:
        cards.show(fleet.head, [CARD])
        yield fleet
    finally:
        fleet.remove()


def _daemons(fleet: Operator) -> list[dict[str, Any]]:
    rows = json.loads(fleet.succeeds("mps", "status", "--json").stdout)["daemons"]
    return [row["daemon"] for row in rows if row["daemon"] and row["daemon"]["pipe"] == PIPE]


def _from_a_container(rig: Rig, host: Host, words: str) -> str:
    """What the daemon answers to a program in a container that is made as an instance's is."""
    door = MpsDoor(pipe=PIPE, log=LOG)
    program = "/usr/local/bin/nvidia-cuda-mps-control"
    line = f"echo {shlex.quote(words)} | {program}"
    settings = rig.write_config(host.folder).read_text()
    extra = shlex.split(settings.partition("EXTRA_DOCKER_ARGS=")[2].splitlines()[0])
    spec = ContainerSpec(
        name="client",
        image=rig.image,
        command=("-c", line),
        environment=dict(mps_share.environment(door, mps_share.divided(4, 0.9))),
        mounts=mps_share.mounts(door),
        arguments=(
            *mps_share.ARGUMENTS,
            *("-v", f"{program}:{program}:ro"),
            *shlex.split(extra[0]),
        ),
        shm_size="64m",
        entrypoint="sh",
    )
    host.sh(str(docker.run(spec)).replace("--restart unless-stopped", ""))
    host.sh("docker wait client")
    said = host.sh("docker logs client").stdout
    host.sh("docker rm client")
    return said


def test_a_daemon_of_root_serves_containers_and_ends_on_demand(rig: Rig, tmp_path: Path) -> None:
    fleet = operator(rig, tmp_path, ACCELERATOR="nvidia")
    fleet.succeeds("mps", "start", "--exclusive", "--yes")
    (daemon,) = _daemons(fleet)
    assert (daemon["uid"], daemon["cards"], daemon["servers"]) == (0, [CARD], [])
    assert _from_a_container(rig, rig.head, "attach 1") == ""
    (daemon,) = _daemons(fleet)
    (server,) = daemon["servers"]
    assert (server["status"], server["clients"][0]["pid"]) == ("ACTIVE", 1)
    assert _from_a_container(rig, rig.head, "get_server_list") == f"{server['pid']}\n"
    refused = fleet.runs("mps", "stop", "--yes")
    assert refused.returncode == 6
    assert f"{PIPE} is used by" in refused.stderr
    fleet.succeeds("mps", "stop", "--force", "--yes")
    assert _daemons(fleet) == []
    modes = json.loads(rig.head.sh("cat /usr/local/bin/cards.json").stdout)
    assert modes[0]["mode"] == "Default"
