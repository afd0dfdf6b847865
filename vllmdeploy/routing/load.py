"""The load of one upstream, from our own counting and from the engine's counters."""

from __future__ import annotations

from dataclasses import dataclass, field

_SMOOTHING = 0.2  # of each new sample: five requests are enough to believe in a change
_FORGET_AFTER_S = 30.0
_FORGET_PER_POLL = 0.05
_PREFIXES_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Observed:
    """The engine's own counters at one instant, as its /metrics page gives them."""

    at: float = 0.0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    generated_tokens: float = 0.0
    prefix_queries: float = 0.0
    prefix_hits: float = 0.0


NOTHING_OBSERVED = Observed()


@dataclass(slots=True)
class Load:
    """Live: its owner calls `begin`, `first_byte`, `end`, `poll`; policies only read.

    `pending` is our own requests plus those that others (another gateway, a person with curl)
    had there at the last poll. `pace_s` is seconds per generated token and per running request,
    `first_byte_s` and `latency_s` are smoothed; each is 0 until something was seen.
    """

    inflight: int = 0
    others: int = 0
    latency_s: float = 0.0
    first_byte_s: float = 0.0
    pace_s: float = 0.0
    observed: Observed = NOTHING_OBSERVED
    prefixes: dict[int, None] = field(default_factory=dict[int, None])
    sampled_at: float = 0.0

    @property
    def pending(self) -> int:
        return self.inflight + self.others

    def begin(self, prefixes: tuple[int, ...] = ()) -> None:
        self.inflight += 1
        known = self.prefixes
        for prefix in prefixes:
            # Out and in again: a dict keeps insertion order, so the first is the least recent.
            known.pop(prefix, None)
            known[prefix] = None
        while len(known) > _PREFIXES_KEPT:
            del known[next(iter(known))]

    def first_byte(self, seconds: float) -> None:
        self.first_byte_s = _smoothed(self.first_byte_s, seconds)

    def end(self, now: float, seconds: float | None = None) -> None:
        """`seconds` only for an answer that is whole: a fast failure must not look like speed."""
        self.inflight -= 1
        if seconds is not None:
            self.latency_s = _smoothed(self.latency_s, seconds)
            self.sampled_at = now

    def poll(self, seen: Observed) -> None:
        before, self.observed = self.observed, seen
        self.others = max(0, seen.running + seen.waiting - self.inflight)
        elapsed = seen.at - before.at
        made = seen.generated_tokens - before.generated_tokens
        busy = (before.running + seen.running) / 2
        # Counters that go back are a restarted engine: no pace can be read across it.
        if before is not NOTHING_OBSERVED and elapsed > 0 and made > 0 and busy > 0:
            self.pace_s = _smoothed(self.pace_s, busy * elapsed / made)
            self.sampled_at = seen.at
        elif seen.at - self.sampled_at > _FORGET_AFTER_S:
            self._forget()

    def _forget(self) -> None:
        """An old bad record must fade, or an upstream nobody uses could never show it recovered."""
        keep = 1 - _FORGET_PER_POLL
        self.latency_s *= keep
        self.first_byte_s *= keep
        self.pace_s *= keep


def _smoothed(old: float, sample: float) -> float:
    return old + _SMOOTHING * (sample - old) if old else sample
