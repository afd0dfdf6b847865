"""What a distribution says while it runs, and the arithmetic of its progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllmdeploy.errors import VllmdeployError

_WINDOW_S = 15.0


@dataclass(frozen=True, slots=True)
class Joined:
    """A host takes part from now on; `there` bytes of the model are there already."""

    host: str
    there: int


@dataclass(frozen=True, slots=True)
class HostDone:
    host: str
    seconds: float


@dataclass(frozen=True, slots=True)
class HostFailed:
    host: str
    error: VllmdeployError


@dataclass(frozen=True, slots=True)
class Again:
    """A piece has to come once more, and why."""

    host: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes by host, of `total` each; bytes a second over all, and the seconds that are left."""

    there: Mapping[str, int]
    total: int
    rate: float
    left_s: float | None


SyncEvent = Joined | HostDone | HostFailed | Again | Progress
OnSyncEvent = Callable[[SyncEvent], None]


@dataclass(slots=True)
class Rate:
    """How fast it goes lately, by a clock that is given."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def at(self, now: float, count: int) -> float:
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[0][0] < now - _WINDOW_S:
            self._seen.popleft()
        began, first = self._seen[0]
        return max(0.0, (count - first) / (now - began)) if now > began else 0.0


def progress(there: Mapping[str, int], total: int, rate: float) -> Progress:
    missing = sum(max(0, total - each) for each in there.values())
    return Progress(there=there, total=total, rate=rate, left_s=missing / rate if rate else None)
