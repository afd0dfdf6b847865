"""The seed's flow, on the hosts themselves and without SSH; groups; and nodes without Docker."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig import base, look
from tests.rig import rig as rigs
from tests.rig.claim import WORKTREE
from tests.rig.disk import Profile
from tests.rig.host import Answer, Host
from tests.rig.operate import JOIN_LIMIT_S, KEPT, STATE, Operator, cards, node, operator
from tests.rig.programs import until
from tests.rig.rig import Rig

SOURCES = "/opt/sources"
FILES = "/root/fleet"
TOKEN = f"{STATE}/secrets/ray/ray_token"


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    names = ("head", "worker", "other-head", "other-worker")
    fleet = rigs.start(tuple(Profile(name=name) for name in names))
    yield fleet
    fleet.remove()


def _install(host: Host, **settings: str) -> None:
    """Our command line on a host that has Python and our dependencies, and the two files, which
    know of no other host."""
    host.sh(f"mkdir -p {SOURCES}/vllmdeploy {FILES}")
    base.tar_into(WORKTREE / "vllmdeploy", host.enter("tar", "-x", "-C", f"{SOURCES}/vllmdeploy"))
    nodes = f"{host.ip} head=yes ray_gpus=2\n"
    keys = "".join(f"{key}='{value}'\n" for key, value in settings.items())
    for name, text in (("worker_nodes.txt", nodes), ("config.env", keys)):
        host.sh(f"cat >{FILES}/{name}", stdin=text.encode())


def _runs(host: Host, *argv: str, stdin: str = "") -> Answer:
    """Our command line inside the host, as root there."""
    line = f'cd {FILES} && PYTHONPATH={SOURCES} exec "$@"'
    program = (f"{sys.prefix}/bin/python", "-m", "vllmdeploy")
    return host.sh(line, *program, *argv, stdin=stdin.encode(), limit_s=180, check=False)


def _status(host: Host) -> tuple[str, str]:
    """What the host says of itself."""
    said = _runs(host, "status", "--json")
    assert said.status == 0, said.stderr
    (row,) = json.loads(said.stdout)["hosts"]
    return row["role"], row["state"]


def _reports(rig: Rig, head: Host, wanted: dict[str, int]) -> None:
    until(
        f"Ray on {head.name} reports {wanted}",
        lambda: look.cluster(rig, head=head) == wanted,
        limit_s=JOIN_LIMIT_S,
        every_s=0.5,
    )


def test_a_head_and_a_worker_that_were_brought_up_on_the_hosts_themselves_are_one_cluster(
    rig: Rig,
) -> None:
    head, worker = rig["head"], rig["worker"]
    before = look.snapshot(rig)
    for host in (head, worker):
        _install(
            host,
            IMAGE=rig.image,
            ACCELERATOR="cpu",
            SHM_SIZE="64m",
            EXTRA_DOCKER_ARGS=base.docker_args(),
        )
    first = _runs(head, "head", head.ip, "--yes")
    assert (first.status, first.stdout) == (0, f"vllmdeploy worker {head.ip}\n"), first.stderr
    token = head.sh(f"cat {TOKEN}").stdout
    assert token not in first.stdout + first.stderr
    joining = ("worker", head.ip, worker.ip, "--token-file", "-", "--yes")
    second = _runs(worker, *joining, stdin=token)
    assert second.status == 0, second.stderr
    assert "nothing to do" in _runs(worker, *joining, stdin=token).stderr
    assert _status(worker) == ("worker", "ready")
    assert "vllm-ray-worker (worker), pid 1" in _runs(worker, "logs").stdout
    refused = _runs(worker, "up", "--yes")
    assert (refused.status, _status(worker)) == (6, ("worker", "ready")), refused.stderr

    _reports(rig, head, cards((head, worker)))
    assert worker.sh(f"cat {TOKEN}; stat -c %a {TOKEN}").stdout == f"{token}600\n"
    assert node(worker).labels["vllmdeploy.role"] == "ray-worker"
    for host in (worker, head):
        gone = _runs(host, "down", "--forget", "--yes")
        assert gone.status == 0, gone.stderr
        host.sh(f"rm -rf {STATE} {SOURCES} {FILES}")
    look.assert_nothing_left(rig, before)


def test_two_groups_are_two_ray_clusters_each_with_a_head_of_its_own(
    rig: Rig, tmp_path: Path
) -> None:
    before = look.snapshot(rig)
    fleet = operator(rig, tmp_path)
    fleet.writes_lines(
        {
            "head": "head=yes ray_gpus=2",
            "worker": "ray_gpus=2",
            "other-head": "group=other head=yes ray_gpus=2",
            "other-worker": "group=other ray_gpus=2",
        }
    )
    fleet.up()
    pairs = {"head": rig.hosts[:2], "other-head": rig.hosts[2:]}
    for name, pair in pairs.items():
        _reports(rig, rig[name], cards(pair))
    groups = {host.name: node(host).labels["vllmdeploy.group"] for host in rig.hosts}
    assert groups == {
        "head": "default",
        "worker": "default",
        "other-head": "other",
        "other-worker": "other",
    }
    assert {row["state"] for row in fleet.status().values()} == {"ready"}
    fleet.down()
    look.assert_nothing_left(rig, before, besides=KEPT)


def test_without_docker_the_same_nodes_are_processes_that_down_ends(
    rig: Rig, tmp_path: Path
) -> None:
    before = look.snapshot(rig)
    head, worker = rig["head"], rig["worker"]
    fleet = operator(
        rig,
        tmp_path,
        *(head, worker),
        RUNTIME="process",
        VLLM_PYTHON=f"{sys.prefix}/bin/python",
        EXTRA_DOCKER_ARGS="",
    )
    fleet.up()
    _reports(rig, head, cards((head, worker)))
    assert look.containers(head) == look.containers(worker) == {}
    assert {name: row["state"] for name, row in fleet.status().items()} == {
        "head": "ready",
        "worker": "ready",
    }
    assert "nothing to do" in fleet.up().stderr
    fleet.down()
    assert _processes(fleet) == ()
    look.assert_nothing_left(rig, before, besides=(*KEPT, "/root/.cache"))


def _processes(fleet: Operator) -> tuple[str, ...]:
    return tuple(line for host in fleet.hosts for line in look.processes(host))
