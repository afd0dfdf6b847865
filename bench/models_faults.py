"""What a fault costs a model's copy: killed half way, 100 flipped bytes, 5,000 small files.

Needs root and the rig's programs. Two hosts whose wire is slow enough to be caught half way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.rig import model_store, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.programs import until
from tests.rig.rig import Rig

MOST_RESENT = 0.55
FLIPS = 100
WIRE = network.Nic(rate="200mbit", speed_mbit=200)


def figure(name: str, text: str, value: float, target: str, *, passed: bool, n: int) -> None:
    record = {"id": name, "figure": text, "value": value, "target": target, "pass": passed, "n": n}
    print(json.dumps(record), flush=True)


def received(host: Host) -> int:
    return int(host.sh("cat /sys/class/net/eth0/statistics/rx_bytes").stdout)


def synced(rig: Rig, folder: Path, name: str) -> None:
    said = model_store.sync(rig, folder, name, limit_s=300)
    if said["status"] != 0:
        raise SystemExit(said["said"])


def killed_half_way(rig: Rig, folder: Path, victim: Host, signal: str) -> tuple[float, int]:
    """The share that was sent twice, and the files that were left over."""
    (target,) = rig.workers
    name = f"Killed-{victim.name}-{signal}"
    manifest = model_store.put(rig.head, name, model_store.shards(1, 48 * model_store.MiB))
    began = received(target)
    with subprocess.Popen(
        (str(Path(sys.prefix, "bin/vllmdeploy")), "model", "sync", name, "--yes"),
        cwd=folder,
        env=rig.operator_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        half = manifest.total / 2
        until("half is there", lambda: model_store.came(target, name) >= half, limit_s=120)
        model_store.kill_copies(victim, signal)
        process.kill()
    at_the_kill = received(target) - began
    synced(rig, folder, name)
    if not model_store.is_whole(target, name, manifest):
        raise SystemExit(f"{name} is not whole")
    resent = received(target) - began - at_the_kill
    return resent / manifest.total, len(model_store.leftovers(target))


def kills(rig: Rig, folder: Path) -> None:
    (target,) = rig.workers
    seen = [
        killed_half_way(rig, folder, victim, signal)
        for victim in (rig.head, target)
        for signal in ("KILL", "TERM")
    ]
    worst, left = max(share for share, _ in seen), sum(count for _, count in seen)
    text = "a copy killed at 50 %, sender or receiver, KILL or TERM"
    target_text, fine = f"<= {MOST_RESENT}", worst <= MOST_RESENT
    figure(
        "M1-resent", f"{text}: sent again, of all", round(worst, 3), target_text, passed=fine, n=4
    )
    figure("M1-left", f"{text}: temporary files left", left, "0", passed=left == 0, n=4)


def flips(rig: Rig, folder: Path) -> None:
    """One bit in each of 100 of 200 files, with size and time as before."""
    (target,) = rig.workers
    size = 256 * 1024
    manifest = model_store.put(rig.head, "Flipped", model_store.shards(2 * FLIPS, size))
    synced(rig, folder, "Flipped")
    chosen = random.Random(0).sample([f for f in manifest.files if f.size == size], FLIPS)
    for file in chosen:
        path = model_store.on_disk(target, f"Flipped/{file.path}")
        before, content = path.stat(), bytearray(path.read_bytes())
        content[random.Random(file.path).randrange(size)] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = rig.vllmdeploy("model", "verify", "Flipped", "--deep", "--json", folder=folder).stdout
    found = sum(file.path in said for file in manifest.files if file in chosen)
    named = sum(file.path in said for file in manifest.files)
    began = received(target)
    synced(rig, folder, "Flipped")
    came = (received(target) - began) / (FLIPS * size)
    whole = model_store.is_whole(target, "Flipped", manifest)
    fine = found == named == FLIPS and whole
    figure(
        "M3-found",
        "bits flipped in 100 of 200 files: files named",
        found,
        "100",
        passed=fine,
        n=FLIPS,
    )
    figure(
        "M3-resent",
        "and sent again, of their bytes",
        round(came, 3),
        "<= 1.1",
        passed=came <= 1.1,
        n=FLIPS,
    )


def small_files(rig: Rig, folder: Path) -> None:
    files = {f"part-{n // 100}/{n:05}.json": b"%d" % n for n in range(5000)}
    model_store.put(rig.head, "Small", files)
    began = time.monotonic()
    synced(rig, folder, "Small")
    rate = 5000 / (time.monotonic() - began)
    figure(
        "M12",
        "5,000 small files, files a second",
        round(rate, 1),
        ">= 200",
        passed=rate >= 200,
        n=1,
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    reason = rigs.reason_it_cannot_run()
    if reason:
        raise SystemExit(reason)
    rig = rigs.start([Profile(name=f"h{n}", nics=(WIRE,), engine=False) for n in range(2)])
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            rig.write_config(folder, MODEL_PATH=model_store.ROOT)
            kills(rig, folder)
            flips(rig, folder)
            small_files(rig, folder)
    finally:
        rig.remove()


if __name__ == "__main__":
    main()
