"""A model to 8 hosts at 100 Mbit/s each: time over (size / bandwidth), ours and by hand.

Needs root and the rig's programs. The figures by hand use smaller shards: their ratios do not
depend on the size, and at full size they would take half an hour.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import lines
from bench.wire import MBIT, Wire
from tests.rig import model_store, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.rig import Rig

GOAL = 1.3
BY_HAND = "/srv/by-hand"
_FIGURES = ("lines", "by-hand", "one-file", "sync")
_LINE = (
    "rsync -a --whole-file -e 'ssh -i /root/.ssh/bench -o StrictHostKeyChecking=no "
    '-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR\' "$1/" "$2:$3/"'
)


def by_sync(rig: Rig, folder: Path, name: str) -> None:
    said = model_store.sync(rig, folder, name, limit_s=900)
    if said["status"] != 0:
        raise SystemExit(said["said"])


def reach_by_hand(rig: Rig) -> None:
    """The head's own key, as somebody who copies by hand would have it."""
    rig.head.sh("mkdir -p /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/bench")
    public = rig.head.sh("cat /root/.ssh/bench.pub").stdout
    for host in rig.workers:
        host.sh("cat >> /root/.ssh/authorized_keys", stdin=public.encode())


def by_hand(rig: Rig, name: str, *, at_once: int, target: str) -> None:
    source = f"{model_store.ROOT}/{name}"

    def copy(host: Host) -> None:
        host.sh('mkdir -p "$1"', target)
        rig.head.sh(_LINE, source, host.ip, target, limit_s=1800)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(copy, rig.workers))
    for host in rig.workers:
        host.sh('rm -rf "$1"', target)


def put(rig: Rig, name: str, count: int, size: int) -> int:
    return model_store.put(rig.head, name, model_store.shards(count, size)).total


def profiles(hosts: int, mbit: int) -> Sequence[Profile]:
    nic = network.Nic(rate=f"{mbit}mbit", speed_mbit=mbit)
    return [Profile(name=f"h{number}", nics=(nic,), engine=False) for number in range(hosts + 1)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hosts", type=int, default=8)
    options.add_argument("--shards", type=int, default=30)
    options.add_argument("--mib", type=int, default=32)
    options.add_argument("--by-hand-mib", type=int, default=4)
    options.add_argument("--mbit", type=int, default=MBIT, help="of each host's line")
    # argparse holds a default against the choices as a whole, so the words say what they are.
    options.add_argument("figures", nargs="*", metavar="|".join(_FIGURES), help="default: all")
    given = options.parse_args()
    given.figures = given.figures or list(_FIGURES)
    if unknown := set(given.figures) - set(_FIGURES):
        options.error(f"no figure {', '.join(sorted(unknown))}")
    reason = rigs.reason_it_cannot_run()
    if reason:
        raise SystemExit(reason)
    rig = rigs.start(profiles(given.hosts, given.mbit))
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            rig.write_config(folder, MODEL_PATH=model_store.ROOT)
            compare(rig, folder, given)
    finally:
        rig.remove()


def compare(rig: Rig, folder: Path, given: argparse.Namespace) -> None:
    shards, wire = given.shards, Wire("M-sync", given.hosts, given.mbit)
    small = given.by_hand_mib * model_store.MiB
    text = f"{shards} shards of {{}} MiB, {{}}"
    by_hand_text = text.format(given.by_hand_mib, "{}")
    if "lines" in given.figures:
        for how, steps in (("one stream", (1,)), ("two streams", (1, 3))):
            figure = f"{how} of plain TCP at each end of every line, all the time"
            wire.limit(figure, lines.share(rig, given.mbit, steps))
    if "by-hand" in given.figures:
        size = put(rig, "Small", shards, small)
        reach_by_hand(rig)
        for how, at_once in (("one after another", 1), ("all at once", given.hosts)):
            work = partial(by_hand, rig, "Small", at_once=at_once, target=BY_HAND)
            wire.measured(by_hand_text.format(f"rsync to {how}"), size, work)
        figure = by_hand_text.format("model sync")
        wire.measured(figure, size, lambda: by_sync(rig, folder, "Small"))
    if "one-file" in given.figures:
        size = put(rig, "Whole", 1, shards * small)
        wire.measured("one file, model sync", size, lambda: by_sync(rig, folder, "Whole"))
    if "sync" in given.figures:
        size = put(rig, "Model", shards, given.mib * model_store.MiB)
        figure = text.format(given.mib, "model sync")
        wire.measured(figure, size, lambda: by_sync(rig, folder, "Model"), GOAL)


if __name__ == "__main__":
    main()
