"""A node as a systemd unit, under a real systemd in namespaces of a rig host."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig import look
from tests.rig import rig as rigs
from tests.rig.booted import SYSTEMD, boot_systemd
from tests.rig.disk import Profile
from tests.rig.operate import JOIN_LIMIT_S, KEPT, cards, operator
from tests.rig.programs import until
from tests.rig.rig import Rig

UNIT = "vllmdeploy-vllm-ray-head.service"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not SYSTEMD.exists(), reason="this machine has no systemd"),
]


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start((Profile(name="head", engine=False),))
    try:
        boot_systemd(fleet.head)
        yield fleet
    finally:
        fleet.remove()


def test_a_unit_is_made_comes_back_when_killed_and_is_gone_after_down(
    rig: Rig, tmp_path: Path
) -> None:
    head = rig.head
    before = head.disk.files()
    fleet = operator(
        rig,
        tmp_path,
        RUNTIME="systemd",
        VLLM_PYTHON=f"{sys.prefix}/bin/python",
        EXTRA_DOCKER_ARGS="",
    )
    fleet.up()
    _reports(rig)
    assert _systemctl(rig, "is-active") == "active"
    assert _systemctl(rig, "is-enabled") == "enabled"
    assert fleet.status()["head"]["state"] == "ready"
    assert "nothing to do" in fleet.up().stderr

    gone = look.raylets(head)[head.ip]
    rig.ssh(head, f"kill -KILL $(systemctl show --property MainPID --value {UNIT})")
    until(
        "another Ray node has taken its place",
        lambda: look.raylets(head).get(head.ip, gone) != gone,
        limit_s=JOIN_LIMIT_S,
        every_s=0.5,
    )
    _reports(rig)
    assert fleet.status()["head"]["restarts"] == 1

    fleet.down()
    assert _systemctl(rig, "is-active") == "inactive"
    assert "raylet" not in head.sh("ps -eo args").stdout
    new = {path for path in head.disk.files() - before if not path.startswith(KEPT)}
    assert {path for path in new if "vllmdeploy" in path} == set()


def _systemctl(rig: Rig, word: str) -> str:
    return rig.ssh(rig.head, f"systemctl {word} {UNIT}", check=False).strip()


def _reports(rig: Rig) -> None:
    wanted = cards(rig.hosts)
    until("Ray reports it", lambda: look.cluster(rig) == wanted, limit_s=JOIN_LIMIT_S, every_s=0.5)
