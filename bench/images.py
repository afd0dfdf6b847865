"""An image to hosts at 100 Mbit/s each: time over (size / bandwidth), ours and by hand.

Needs root and the rig's programs. `push` is ours, `star` is what everybody does by hand:
`docker save` on the head into `docker load` on each host, all at once. `load` is the last part of
both alone: `docker load` of an archive that is there, on all hosts at once. `second` pushes 10 MB
on top. One machine plays all hosts: read `cpu_share` beside each ratio.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.wire import MBIT, Wire
from tests.rig import images, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.images import MiB
from tests.rig.rig import Rig

GOAL = 1.5
_ARCHIVE = "bench.tar"
_STAR = (
    "docker save $1 | ssh -i /root/.ssh/bench -o StrictHostKeyChecking=no"
    " -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR $2 docker load"
)
_PLACES = ("push", "star", "load", "second")


def by_push(rig: Rig, folder: Path, name: str) -> int:
    said = images.push(rig, folder, name, limit_s=1800)
    if said["status"] != 0:
        raise SystemExit(said["said"])
    return int(said["received_bytes"])


def by_star(rig: Rig, name: str) -> None:
    rig.head.sh("mkdir -p /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/bench")
    public = rig.head.sh("cat /root/.ssh/bench.pub").stdout.encode()
    for host in rig.workers:
        host.sh("cat >> /root/.ssh/authorized_keys", stdin=public)

    def copy(host: Host) -> None:
        rig.head.sh(_STAR, name, host.ip, limit_s=1800)

    at_once(rig, copy)


def by_load(rig: Rig) -> None:
    at_once(rig, lambda host: host.sh(f"docker load < /root/{_ARCHIVE}", limit_s=1800))


def lay_archives(rig: Rig, name: str) -> None:
    rig.head.sh(f"docker save $1 > /root/{_ARCHIVE}", name, limit_s=600)
    for host in rig.workers:
        shutil.copy(*(one.disk.root / "root" / _ARCHIVE for one in (rig.head, host)))


def at_once(rig: Rig, work: Callable[[Host], object]) -> None:
    with ThreadPoolExecutor(len(rig.workers)) as pool:
        list(pool.map(work, rig.workers))


def profiles(hosts: int, mbit: int) -> Sequence[Profile]:
    nic = network.Nic(rate=f"{mbit}mbit", speed_mbit=mbit)
    return [Profile(name=f"h{number}", nics=(nic,)) for number in range(hosts + 1)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    # argparse holds a default against the choices as a whole, so the words say what they are.
    options.add_argument("figures", nargs="*", metavar="|".join(_PLACES), help="default: all")
    options.add_argument("--hosts", type=int, default=8)
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--mbit", type=int, default=MBIT, help="of each host's line")
    given = options.parse_args()
    given.figures = given.figures or list(_PLACES)
    if unknown := set(given.figures) - set(_PLACES):
        options.error(f"no figure {', '.join(sorted(unknown))}")
    reason = rigs.reason_it_cannot_run()
    if reason:
        raise SystemExit(reason)
    rig = rigs.start(profiles(given.hosts, given.mbit))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            rig.write_config(folder)
            compare(rig, folder, given)
    finally:
        rig.remove()


def compare(rig: Rig, folder: Path, given: argparse.Namespace) -> None:
    size = given.mib * MiB
    wire = Wire("M-image", given.hosts, given.mbit)
    if "star" in given.figures:
        images.put(rig.head, "star:1", size)
        text = f"{given.mib} MiB, docker save to all at once"
        wire.measured(text, size, partial(by_star, rig, "star:1"))
    if "load" in given.figures:
        images.put(rig.head, "loaded:1", size)
        lay_archives(rig, "loaded:1")
        text = f"{given.mib} MiB, docker load on all at once, without a line"
        wire.measured(text, size, partial(by_load, rig))
    if "push" in given.figures or "second" in given.figures:
        images.put(rig.head, "pushed:1", size)
        text = f"{given.mib} MiB, image push"
        wire.measured(text, size, partial(by_push, rig, folder, "pushed:1"), GOAL)
    if "second" in given.figures:
        small = 10 * 1000 * 1000
        images.put(rig.head, "second:1", small, on="pushed:1")
        work = partial(by_push, rig, folder, "second:1")
        wire.measured("10 MB on top, image push", small, work)


if __name__ == "__main__":
    main()
