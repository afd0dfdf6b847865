"""A Docker Engine that can keep its images in containerd's store, for hosts of the rig.

It comes from the Debian release after this machine's own, by apt, into the cache; nothing is
installed on this machine.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.rig import base
from tests.rig.claim import WORKTREE
from tests.rig.host import Host
from tests.rig.programs import RigError, run

RELEASE = "trixie"
PACKAGES = ("docker.io", "containerd")
FOLDER = WORKTREE / ".cache" / f"docker-{RELEASE}"
_PROGRAMS = ("usr/sbin/dockerd", "usr/bin/containerd", "usr/bin/containerd-shim-runc-v2")


def fetched() -> Path:
    """The folder with its programs; asks apt's mirror once."""
    root = FOLDER / "root"
    if not all((root / program).exists() for program in _PROGRAMS):
        _fetch(root)
    return root


def _fetch(root: Path) -> None:
    for folder in ("lists/partial", "cache/archives/partial"):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
    mirror = base.mirror(base.apt_sources(), base.codename())
    signed = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (FOLDER / "sources.list").write_text(f"deb [signed-by={signed}] {mirror} {RELEASE} main\n")
    apart = {
        "Dir::Etc::sourcelist": FOLDER / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": FOLDER / "lists",
        "Dir::Cache": FOLDER / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = (
        "apt-get",
        "-qq",
        *(word for one in apart.items() for word in ("-o", f"{one[0]}={one[1]}")),
    )
    run((*apt, "update"), limit_s=180)
    run((*apt, "download", *PACKAGES), limit_s=300, cwd=str(FOLDER))
    for package in FOLDER.glob("*.deb"):
        run(("dpkg", "-x", str(package), str(root)))


def give(host: Host) -> None:
    """This host's engine from now on, with containerd's store and no images."""
    root = fetched()
    host.stop_docker()
    for program in _PROGRAMS:
        content = (root / program).read_bytes()
        place = f"/usr/local/sbin/{Path(program).name}"
        host.sh('cat > "$1" && chmod 755 "$1"', place, stdin=content)
    host.sh(
        "cat > /etc/docker/daemon.json",
        stdin=json.dumps({"features": {"containerd-snapshotter": True}}).encode(),
    )
    host.start_docker()
    status = host.sh("docker info --format '{{json .DriverStatus}}'").stdout
    if "io.containerd.snapshotter" not in status:
        raise RigError(f"{host.name}: its store is not containerd's: {status}")
