"""Images between real engines: only what is lacking, resumed, whole or not there; real builds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig import images, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.images import MiB
from tests.rig.programs import until
from tests.rig.rig import Rig

WIRE = network.Nic(rate="200mbit", speed_mbit=200)
FLEET = (
    Profile(name="head", nics=(WIRE,)),
    Profile(name="sudoer", user="deploy", nics=(WIRE,)),
    Profile(name="plain", nics=(WIRE,)),
    Profile(name="bare", nics=(WIRE,), without=("rsync",)),
)


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start(FLEET)
    yield fleet
    fleet.remove()


@pytest.fixture
def folder(rig: Rig, tmp_path: Path) -> Path:
    rig.write_config(tmp_path)
    return tmp_path


def test_only_the_layers_that_a_host_lacks_come_and_the_image_is_the_same(
    rig: Rig, folder: Path
) -> None:
    first = images.put(rig.head, "first:1", 12 * MiB)
    pushed = images.push(rig, folder, "first:1")
    assert pushed["status"] == 0, pushed["said"]
    assert sorted(pushed["done"]) == sorted(host.ip for host in rig.workers)
    assert 36 * MiB <= pushed["received_bytes"] < 38 * MiB
    assert {images.id_of(host, "first:1") for host in rig.hosts} == {first}
    second = images.put(rig.head, "second:1", 1 * MiB, on="first:1")
    pushed = images.push(rig, folder, "second:1")
    assert pushed["status"] == 0, pushed["said"]
    assert 3 * MiB <= pushed["received_bytes"] < 4 * MiB
    assert {images.id_of(host, "second:1") for host in rig.hosts} == {second}
    sums = {images.runs(host, "second:1", "sha256sum", "/first-1") for host in rig.hosts}
    assert len(sums) == 1
    assert [images.staged(host) for host in rig.hosts] == [[], [], [], []]
    again = images.push(rig, folder, "second:1")
    assert (again["status"], again["done"], again["received_bytes"]) == (0, [], 0)
    listed = rig.vllmdeploy("image", "list", "--json", folder=folder)
    lines = json.loads(listed.stdout)["images"]
    assert {line["identity"] for line in lines if line["image"] == "second:1"} == {second}


def test_a_push_that_was_killed_goes_on_from_where_it_was(rig: Rig, folder: Path) -> None:
    plain = rig["plain"]
    size = 64 * MiB
    made = images.put(rig.head, "killed:1", size)
    before = {path: path.stat().st_size for path in images.staged(plain)}
    argv = (str(Path(sys.prefix, "bin/vllmdeploy")), "image", "push", "killed:1")
    with subprocess.Popen(
        (*argv, "--to", plain.ip, "--yes"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=rig.operator_environment(),
    ) as push:
        until(
            "half of it is there",
            lambda: images.staged_bytes(plain) >= size / 2,
            limit_s=90,
        )
        push.kill()
    assert before == {}
    assert images.id_of(plain, "killed:1") == ""
    rig.vllmdeploy("unlock", "--yes", folder=folder)
    pushed = images.push(rig, folder, "killed:1", "--to", plain.ip)
    assert pushed["status"] == 0, pushed["said"]
    assert pushed["received_bytes"] < size * 0.8
    assert images.id_of(plain, "killed:1") == made


def test_a_full_disk_fails_its_host_alone_and_leaves_nothing_behind(rig: Rig, folder: Path) -> None:
    plain = rig["plain"]
    made = images.put(rig.head, "full:1", 12 * MiB)
    had = plain.sh("docker image ls --all --quiet --no-trunc | sort").stdout
    plain.sh("mkdir -p /var/lib/docker/tmp && mount -t tmpfs -o size=4m none /var/lib/docker/tmp")
    try:
        pushed = images.push(rig, folder, "full:1")
    finally:
        plain.sh("umount /var/lib/docker/tmp")
    assert pushed["status"] == 4, pushed["said"]
    assert list(pushed["failed"]) == [plain.ip]
    assert "no space left on device" in pushed["failed"][plain.ip]
    assert sorted(pushed["done"]) == sorted(host.ip for host in rig.workers if host is not plain)
    assert plain.sh("docker image ls --all --quiet --no-trunc | sort").stdout == had
    assert images.staged(plain) == []
    pushed = images.push(rig, folder, "full:1")
    assert pushed["status"] == 0, pushed["said"]
    assert images.id_of(plain, "full:1") == made


def test_a_ray_is_put_onto_a_stock_image_without_any_network(rig: Rig, folder: Path) -> None:
    base = images.put_with_vllm(rig.head, "stock/vllm:1")
    major, minor = images.python_of(rig.head)
    wheels = images.wheels(folder / "wheels", "2.60.0", python=(major, minor))
    argv = ("image", "build", "stock/vllm:1", "--wheels", str(wheels), "--yes", "--json")
    built = rig.vllmdeploy(*argv, folder=folder)
    assert built.returncode == 0, built.stderr
    name = "vllmdeploy/vllm:1-ray2.60.0"
    document = json.loads(built.stdout)
    assert (document["image"], document["labels"]["vllmdeploy.image.base"]) == (name, base)
    assert images.runs(rig.head, name, "python3", "-c", '"import ray; print(ray.__version__)"') == (
        "2.60.0"
    )
    assert images.runs(rig.head, name, "find", "/", "-xdev", "-name", "'*.whl'") == ""
    assert rig.head.sh("docker image ls --quiet --filter dangling=true").stdout == ""
    again = rig.vllmdeploy("image", "build", name, "--yes", folder=folder)
    assert (again.returncode, "has Ray 2.60.0 already" in again.stderr) == (6, True), again.stderr
    other = images.wheels(folder / "other", "2.60.0", python=(major, minor + 1))
    refused = rig.vllmdeploy(
        "image", "build", "stock/vllm:1", "--wheels", str(other), folder=folder
    )
    assert (refused.returncode, f"no Ray for Python {major}.{minor}" in refused.stderr) == (6, True)
