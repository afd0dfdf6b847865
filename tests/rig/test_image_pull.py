"""A tag that moves between two hosts' pulls: real engines, a real registry's words."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.rig import images, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.rig import Rig
from tests.support.registry import registry


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start([Profile(name=name) for name in ("head", "second", "third")])
    operator = network.address(fleet.hosts[0].number, "a", network.OPERATOR)
    for host in fleet.hosts:
        host.stop_docker()
        settings = {"storage-driver": "overlay2", "insecure-registries": [f"{operator}/32"]}
        (host.disk.etc / "docker/daemon.json").write_text(json.dumps(settings))
        host.start_docker()
    yield fleet
    fleet.remove()


def layer(text: bytes) -> bytes:
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode="w") as tar:
            entry = tarfile.TarInfo("version")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
        return made.getvalue()


# The image itself is empty: what it runs is this machine's.
_PROGRAMS = " ".join(f"-v {folder}:{folder}:ro" for folder in ("/usr", "/bin", "/lib", "/lib64"))


def test_all_hosts_get_what_the_first_one_got(rig: Rig, tmp_path: Path) -> None:
    operator = network.address(rig.hosts[0].number, "a", network.OPERATOR)
    with registry(operator, [layer(b"old"), layer(b"new")]) as served:
        image = f"{served.address}/engine:latest"
        rig.write_config(tmp_path, IMAGE=image, EXTRA_DOCKER_ARGS=_PROGRAMS)
        done = rig.vllmdeploy("up", "--yes", folder=tmp_path)
        ids = [images.id_of(host, image) for host in rig.hosts]
        assert (len(set(ids)), "" in ids) == (1, False), done.stderr
        assert list(served.met) == [rig.head.ip]
        assert done.returncode == 0, done.stderr
