"""How much longer than the wire alone something takes that brings bytes to many hosts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MBIT = 100
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Wire:
    """`mbit`: of each host's line. With fewer, the same bytes leave the CPUs that all hosts share
    more time: what is then left beyond 1.0 is not theirs."""

    id: str
    hosts: int
    mbit: int

    def measured(
        self, figure: str, size: int, work: Callable[[], int | None], goal: float | None = None
    ) -> None:
        """One line. `work` may say how many bytes came to all hosts together."""
        busy, all_of_it = _cpu()
        began = time.monotonic()
        received = work()
        seconds = time.monotonic() - began
        busy_after, all_after = _cpu()
        ratio = seconds / (size / (self.mbit * 1e6 / 8))
        each = None if received is None else round(received / self.hosts / _MIB, 2)
        record = {
            "id": self.id,
            "figure": figure,
            "value": round(ratio, 3),
            "target": f"<= {goal}" if goal else None,
            "pass": ratio <= goal if goal else None,
            "n": self.hosts,
            "mbit": self.mbit,
            "seconds": round(seconds, 1),
            "mib": round(size / _MIB, 1),
            "received_mib_per_host": each,
            "cpu_share": round((busy_after - busy) / (all_after - all_of_it), 2),
        }
        print(json.dumps(record), flush=True)

    def limit(self, figure: str, share: float) -> None:
        """One line: what the ratio would be if nothing but this were to be done. `share`: of a
        line, what of it arrives."""
        record = {
            "id": self.id,
            "figure": figure,
            "value": round(1 / share, 3),
            "n": self.hosts,
            "mbit": self.mbit,
        }
        print(json.dumps(record), flush=True)


def _cpu() -> tuple[float, float]:
    """Seconds in which this machine's CPUs worked, and all there were."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(word) for word in words]
    per_s = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_s, sum(ticks) / per_s
