"""How many rows at once, how fast and for how much: decided from what was seen, clock given."""

from __future__ import annotations

import random
from dataclasses import dataclass

_START = 32.0
_FEWEST_SAMPLES = 16
_WORTH = 0.25  # of the gain that more rows in flight would bring if nothing queued
_STEP = 0.1
_BACK_ON_LATENCY = 0.87
_BACK_ON_REFUSAL = 0.5
_SLOWED = 0.5
_HOLD_ROUNDS = 8
_REFUSAL_WINDOW_S = 1.0


class Concurrency:
    """Finds how many rows in flight an instance turns into more tokens a second.

    Doubles at first, then adds a tenth at a time. Goes back where more in flight only made each row
    slower: after a doubling to what it was before, else by an eighth; and by half where the
    instance refused (429, 503). By Little's law the rows in flight are throughput times latency:
    if throughput does not follow, latency did.
    In doubt it stays high: rows too many wait in the engine, rows too few leave it idle.
    """

    def __init__(self, cap: int, *, start: float = _START) -> None:
        self.cap = cap
        self._limit = min(float(cap), start)
        self._doubling = True
        self._hold = 0  # rows until more are tried again
        self._before: tuple[float, float] | None = None
        self._settling = True
        self._refused = False
        self._saturated = True
        self._seen = self._work = 0
        self._since = 0.0

    @property
    def limit(self) -> int:
        return int(self._limit)

    def completed(self, now: float, work: int, *, saturated: bool) -> None:
        """`work` is the tokens made (1 where unknown); `saturated`: all places were taken."""
        self._seen += 1
        if self._settling:
            # Those that finish first were begun under the old limit and tell nothing of the new.
            if self._seen >= self._limit:
                self._settling = False
                self._seen, self._since = 0, now
            return
        self._work += max(1, work)
        self._saturated = self._saturated and saturated
        if self._seen >= max(self._limit, _FEWEST_SAMPLES) and now > self._since:
            self._judge(now, self._work / (now - self._since))

    def refused(self, now: float) -> None:
        """Once a window: the rows in flight together are refused together."""
        self._doubling = False
        if self._settling and self._refused and now - self._since < _REFUSAL_WINDOW_S:
            return
        self._move(now, self._limit * _BACK_ON_REFUSAL)
        self._refused = True
        self._before = None
        self._hold = _HOLD_ROUNDS * self.limit

    def _judge(self, now: float, rate: float) -> None:
        limit, before = self._limit, self._before
        self._before = (limit, rate)
        if before is not None and limit > before[0]:
            hoped = before[1] * (limit / before[0] - 1)
            if rate - before[1] < _WORTH * hoped:
                back = before[0] if self._doubling else limit * _BACK_ON_LATENCY
                self._before = None
                self._go_back(now, back)
                return
        elif before is not None and limit == before[0] and rate < before[1] * _SLOWED:
            self._go_back(now, limit * _BACK_ON_LATENCY)
            return
        self._grow(now)

    def _go_back(self, now: float, wanted: float) -> None:
        self._doubling = False
        self._move(now, wanted)
        self._hold = _HOLD_ROUNDS * self.limit

    def _grow(self, now: float) -> None:
        if self._hold:
            self._hold = max(0, self._hold - self._seen)
            self._restart_window(now)
        elif self._saturated:
            step = self._limit if self._doubling else max(1.0, self._limit * _STEP)
            self._move(now, self._limit + step)
        else:
            self._restart_window(now)

    def _move(self, now: float, wanted: float) -> None:
        moved = min(float(self.cap), max(1.0, wanted))
        if moved == self._limit:
            self._restart_window(now)
        else:
            self._limit = moved
            self._settle(now)

    def _settle(self, now: float) -> None:
        self._restart_window(now)
        self._settling = True

    def _restart_window(self, now: float) -> None:
        self._settling = self._refused = False
        self._saturated = True
        self._seen = self._work = 0
        self._since = now


class Pace:
    """A rate that is kept on average: what is taken ahead of time is waited for afterwards."""

    def __init__(self, per_second: float, *, burst_s: float = 1.0) -> None:
        self._rate = per_second
        self._most = per_second * burst_s
        self._level = self._most
        self._at = 0.0

    def debit(self, now: float, amount: float) -> None:
        self._fill(now)
        self._level -= amount

    def wait(self, now: float) -> float:
        """Seconds until more may be taken, 0 for now."""
        self._fill(now)
        return 0.0 if self._level > 0 else (1e-6 - self._level) / self._rate

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens, in any one currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


FREE = Price()


def retry_delay(
    attempt: int, chance: random.Random, *, base: float = 0.25, cap: float = 20
) -> float:
    """Full jitter: rows that failed together do not come back together."""
    return chance.uniform(0, min(cap, base * 2.0 ** min(attempt, 20)))


def outage_delay(
    failures: int, chance: random.Random, *, base: float = 0.5, cap: float = 15
) -> float:
    """At least half of it is waited, so an instance that is down is asked a few times a minute."""
    whole = min(cap, base * 2.0 ** min(failures, 20))
    return whole / 2 + chance.uniform(0, whole / 2)
