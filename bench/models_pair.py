"""A model between two hosts whose wire has no limit: `model sync` against k parallel `ssh cat`.

Needs root and the rig's programs. Interleaved rounds; the best k of each round counts. Ours is the
whole command: its start, the looks, every sha256, all of it on the disk, READY. The cats are the
bare copy with ssh's own choice of cipher; what hashes and disk cost by hand is told beside.
Both hosts share this machine's processors, as a real pair does not. What arrives is kept in memory
(--on-disk: it is not): below a rig there is one disk, slower than the wire, and only ours waits for
it, because a model is READY when it is on the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.models import by_sync, reach_by_hand
from tests.rig import model_store
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.rig import Rig

GOAL = 0.9
# Where the model goes too, so that both write to the same place.
BY_HAND = f"{model_store.ROOT}/.by-hand"
_SSH = (
    "ssh -i /root/.ssh/bench -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
    "-o LogLevel=ERROR"
)
_CAT = f'{_SSH} "$2" "cat > $3/${{1##*/}}" < "$1"'


def by_cat(rig: Rig, name: str, streams: int) -> tuple[float, float]:
    """Seconds for all files, `streams` at a time; and until they are hashed and on the disk."""
    (target,) = rig.workers
    target.sh('mkdir -p "$1"', BY_HAND)
    files = rig.head.sh('find "$1" -type f', f"{model_store.ROOT}/{name}").stdout.split()
    began = time.monotonic()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda path: rig.head.sh(_CAT, path, target.ip, BY_HAND), files))
    copied = time.monotonic() - began
    target.sh('cd "$1" && ls | xargs -P 4 -n 1 openssl dgst -sha256 && sync -f .', BY_HAND)
    safe = time.monotonic() - began
    target.sh('rm -rf "$1"', BY_HAND)
    return copied, safe


def compare(rig: Rig, folder: Path, given: argparse.Namespace) -> None:
    ratios: list[float] = []
    safe: list[float] = []
    for number in range(given.rounds):
        name = f"Pair-{number}"
        shards = model_store.shards(given.shards, given.mib * model_store.MiB)
        size = model_store.put(rig.head, name, shards).total
        by_hand = {streams: by_cat(rig, name, streams) for streams in given.streams}
        began = time.monotonic()
        by_sync(rig, folder, name)
        ours = time.monotonic() - began
        ratios.append(min(copied for copied, _ in by_hand.values()) / ours)
        safe.append(min(safe for _, safe in by_hand.values()) / ours)
        print(
            json.dumps(
                {
                    "round": number,
                    "mib": size // model_store.MiB,
                    "sync_s": round(ours, 2),
                    "ssh_cat_s": {k: round(copied, 2) for k, (copied, _) in by_hand.items()},
                    "with_hashes_on_disk_s": {
                        k: round(all_, 2) for k, (_, all_) in by_hand.items()
                    },
                }
            ),
            file=sys.stderr,
        )
        for host in rig.hosts:
            host.sh('rm -rf "$1"', f"{model_store.ROOT}/{name}")
    ratio = statistics.median(ratios)
    record = {
        "id": "M-pair",
        "figure": "one pair without a limit: `model sync`, times the best `ssh cat`",
        "value": round(ratio, 3),
        "target": f">= {GOAL}",
        "pass": ratio >= GOAL,
        "n": given.rounds,
        "times_cat_with_hashes_on_disk": round(statistics.median(safe), 3),
    }
    print(json.dumps(record), flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shards", type=int, default=16)
    options.add_argument("--mib", type=int, default=256)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--streams", type=int, nargs="+", default=[2, 4])
    options.add_argument("--on-disk", action="store_true", help="what arrives goes to the disk")
    given = options.parse_args()
    reason = rigs.reason_it_cannot_run()
    if reason:
        raise SystemExit(reason)
    rig = rigs.start([Profile(name=f"h{number}", engine=False) for number in range(2)])
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            rig.write_config(folder, MODEL_PATH=model_store.ROOT)
            reach_by_hand(rig)
            if not given.on_disk:
                for host in rig.workers:
                    host.sh(
                        'mkdir -p "$1" && mount -t tmpfs -o size=80% none "$1"', model_store.ROOT
                    )
            compare(rig, folder, given)
    finally:
        rig.remove()


if __name__ == "__main__":
    main()
