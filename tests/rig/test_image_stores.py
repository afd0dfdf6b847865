"""Docker's own store and containerd's, between real engines: one image is one, both ways."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig import images, newer_docker
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.images import MiB
from tests.rig.rig import Rig

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start([Profile(name="classic"), Profile(name="newer")])
    try:
        newer_docker.give(fleet["newer"])
        yield fleet
    finally:
        fleet.remove()


@pytest.fixture
def folder(rig: Rig, tmp_path: Path) -> Path:
    rig.write_config(tmp_path)
    return tmp_path


def lines(rig: Rig, folder: Path, image: str) -> list[tuple[str, str]]:
    """Store and identity of this image on every host."""
    listed = rig.vllmdeploy("image", "list", "--json", folder=folder)
    found = json.loads(listed.stdout)["images"]
    return [(one["store"], one["identity"]) for one in found if one["image"] == image]


def test_an_image_goes_into_the_other_store_and_is_known_to_be_the_same(
    rig: Rig, folder: Path
) -> None:
    made = images.put(rig.head, "there:1", 4 * MiB)
    pushed = images.push(rig, folder, "there:1")
    assert pushed["status"] == 0, pushed["said"]
    assert pushed["done"] == [rig["newer"].ip]
    assert images.id_of(rig["newer"], "there:1") != made
    assert lines(rig, folder, "there:1") == [("docker", made), ("containerd", made)]
    again = images.push(rig, folder, "there:1")
    assert (again["status"], again["done"], again["received_bytes"]) == (0, [], 0)
    sums = {images.runs(host, "there:1", "sha256sum", "/there-1") for host in rig.hosts}
    assert len(sums) == 1


def test_an_image_that_was_made_in_containerds_store_goes_into_dockers(
    rig: Rig, folder: Path
) -> None:
    assert images.push(rig, folder, "there:1")["status"] == 0
    images.put(rig["newer"], "back:1", 1 * MiB, on="there:1")
    pushed = images.push(rig, folder, "back:1")
    assert pushed["status"] == 0, pushed["said"]
    assert (pushed["from"], pushed["done"]) == (rig["newer"].ip, [rig.head.ip])
    # Only its last layer was lacking.
    assert pushed["received_bytes"] < 2 * MiB
    identity = images.id_of(rig.head, "back:1")
    assert pushed["digest"] == identity
    assert lines(rig, folder, "back:1") == [("docker", identity), ("containerd", identity)]
