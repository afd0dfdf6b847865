"""`up` of a head and three workers beside the same commands by hand, in interleaved pairs; prints
JSON lines.

Both begin on bare hosts that have the image, and end when Ray itself shows all cards. Needs root,
Docker and what `make setup` installs.

    python bench/up.py --pairs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.rig import hand, look
from tests.rig import rig as rigs
from tests.rig.rig import Rig

TARGET = 1.2


def by_tool(rig: Rig, folder: Path) -> float:
    """Seconds from the command to its end, which is when it has seen all cards."""
    started = time.monotonic()
    done = rig.vllmdeploy("up", "--yes", folder=folder)
    took = time.monotonic() - started
    if done.returncode != 0 or look.cluster(rig) != {
        one.ip: one.profile.cards for one in rig.hosts
    }:
        raise SystemExit(f"up: exit {done.returncode}, Ray: {look.cluster(rig)}\n{done.stderr}")
    return took


def take_away(rig: Rig, folder: Path) -> None:
    done = rig.vllmdeploy("down", "--forget", "--yes", folder=folder)
    if done.returncode != 0:
        raise SystemExit(f"down: exit {done.returncode}\n{done.stderr}")


def pair(rig: Rig, folder: Path, *, tool_first: bool) -> tuple[float, float]:
    """Both once, one after the other; who is first alternates."""
    took: dict[str, float] = {}
    for who in ("tool", "hand") if tool_first else ("hand", "tool"):
        if who == "tool":
            took[who] = by_tool(rig, folder)
            take_away(rig, folder)
        else:
            took[who] = hand.up(rig)
            hand.down(rig)
    return took["tool"], took["hand"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=3)
    pairs = options.parse_args().pairs
    began = time.monotonic()
    rig = rigs.start()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rig.write_config(folder)
            hand.up(rig)  # Nothing of Ray is in the page cache before
            hand.down(rig)
            seen: list[tuple[float, float]] = []
            for number in range(pairs):
                seen.append(pair(rig, folder, tool_first=number % 2 == 0))
                tool, by_hand = (round(seconds, 2) for seconds in seen[-1])
                print(json.dumps({"pair": number + 1, "up_s": tool, "hand_s": by_hand}), flush=True)
    finally:
        rig.remove()
    tool, by_hand = (statistics.median(column) for column in zip(*seen, strict=True))
    figure = {
        "id": "up",
        "figure": "`up` of 1 head + 3 workers, times the same commands by hand",
        "value": round(tool / by_hand, 3),
        "target": f"<= {TARGET}",
        "pass": tool / by_hand <= TARGET,
        "n": pairs,
        "seconds": round(time.monotonic() - began, 1),
        "up_s": round(tool, 2),
        "hand_s": round(by_hand, 2),
    }
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
