"""How far a run is: numbers for the terminal, and for `batch status` in another shell."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from vllmdeploy.batch.durable import replace_file

PROGRESS_NAME = "progress.json"
_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class InstanceProgress:
    name: str
    inflight: int
    limit: int
    ok: int
    failed: int
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`waiting` says why nothing can be sent now, and is empty where something can."""

    total: int
    ok: int
    failed: int
    inflight: int
    rows_per_s: float
    tokens_per_s: float
    seconds: float
    waiting: str
    instances: tuple[InstanceProgress, ...] = ()

    @property
    def done(self) -> int:
        return self.ok + self.failed

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rows_per_s if self.rows_per_s > 0 else None


class Speed:
    """Rows and tokens a second over the last samples, so that an outage shows at once."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)

    def sample(self, now: float, rows: int, tokens: int) -> tuple[float, float]:
        self._samples.append((now, rows, tokens))
        then, rows_then, tokens_then = self._samples[0]
        elapsed = now - then
        if elapsed <= 0:
            return 0.0, 0.0
        return (rows - rows_then) / elapsed, (tokens - tokens_then) / elapsed


def save(folder: Path, progress: Progress) -> None:
    data = {**asdict(progress), "seconds_left": progress.seconds_left}
    replace_file(folder / PROGRESS_NAME, json.dumps(data).encode() + b"\n", sync=False)


def load(folder: Path) -> dict[str, object] | None:
    """As it was saved; None where no run has got far enough to save any."""
    try:
        return cast("dict[str, object]", json.loads((folder / PROGRESS_NAME).read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def words(progress: Progress) -> str:
    """One plain line."""
    left = progress.seconds_left
    parts = [
        f"{progress.done}/{progress.total} rows",
        f"ok {progress.ok}",
        f"failed {progress.failed}",
        f"in flight {progress.inflight}",
        f"{progress.rows_per_s:.1f} rows/s",
        f"{progress.tokens_per_s:.0f} tokens/s",
        f"time left {duration(left)}" if left is not None else "time left unknown",
    ]
    if progress.waiting:
        parts.append(f"waiting: {progress.waiting}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
