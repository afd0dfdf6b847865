"""What the finished rows add up to, gathered line by line in constant memory."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vllmdeploy.batch.entries import OK, Head

_SLOWEST = 10
_EXAMPLES = 3
_LOOKED_AT = 50
_BINS_PER_DECADE = 20
_FASTEST_S = 1e-4
_MOST_SPANS = 1024
_PAUSE_S = 300.0


class Bin(NamedTuple):
    low: float
    high: float
    rows: int


class Span(NamedTuple):
    """Rows and tokens of one stretch of time."""

    start: float
    rows: int
    tokens: int


class Histogram:
    """Logarithmic bins: any quantile is right to 6 %, whatever the range."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.total = 0

    def add(self, value: float) -> None:
        self.counts[int(math.log10(max(value, _FASTEST_S) / _FASTEST_S) * _BINS_PER_DECADE)] += 1
        self.total += 1

    def quantile(self, share: float) -> float:
        wanted, seen = share * self.total, 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= wanted:
                return _edge(index + 0.5)
        return 0.0

    def bins(self, merged: int = 4) -> tuple[Bin, ...]:
        """Without holes, from the first that has something in to the last."""
        if not self.counts:
            return ()
        coarse: Counter[int] = Counter()
        for index, count in self.counts.items():
            coarse[index // merged] += count
        return tuple(
            Bin(_edge(index * merged), _edge((index + 1) * merged), coarse[index])
            for index in range(min(coarse), max(coarse) + 1)
        )


def _edge(index: float) -> float:
    return float(_FASTEST_S * 10 ** (index / _BINS_PER_DECADE))


class Timeline:
    """Rows over time; the spans get longer as the run does, so their number stays bounded."""

    def __init__(self) -> None:
        self.width = 1.0
        self._spans: dict[int, tuple[int, int]] = {}

    def add(self, at: float, tokens: int) -> None:
        index = int(at // self.width)
        rows, made = self._spans.get(index, (0, 0))
        self._spans[index] = (rows + 1, made + tokens)
        while len(self._spans) > _MOST_SPANS:
            self._widen()

    def _widen(self) -> None:
        self.width *= 2
        old, self._spans = self._spans, {}
        for index, (rows, tokens) in old.items():
            before = self._spans.get(index // 2, (0, 0))
            self._spans[index // 2] = (before[0] + rows, before[1] + tokens)

    def spans(self) -> tuple[Span, ...]:
        """With the empty ones between; a pause, as between two runs, is left out."""
        spans: list[Span] = []
        before: int | None = None
        for index in sorted(self._spans):
            if before is not None and (index - before) * self.width <= _PAUSE_S:
                spans += (Span(gap * self.width, 0, 0) for gap in range(before + 1, index))
            spans.append(Span(index * self.width, *self._spans[index]))
            before = index
        return tuple(spans)

    @property
    def busy_s(self) -> float:
        return len(self.spans()) * self.width


class Slow(NamedTuple):
    seconds: float
    line: int
    completion_tokens: int
    instance: str


@dataclass(slots=True)
class Stats:
    ok: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])
    instances: Counter[str] = field(default_factory=Counter[str])
    latency: Histogram = field(default_factory=Histogram)
    tokens: Histogram = field(default_factory=Histogram)
    timeline: Timeline = field(default_factory=Timeline)
    examples: dict[str, list[str]] = field(default_factory=dict[str, "list[str]"])
    _slowest: list[Slow] = field(default_factory=list[Slow])

    def add(self, head: Head) -> None:
        self.attempts += head.attempts
        self.prompt_tokens += head.prompt_tokens
        self.completion_tokens += head.completion_tokens
        self.timeline.add(head.at, head.completion_tokens)
        if head.instance:
            self.instances[head.instance] += 1
        if head.kind != OK:
            self.failed += 1
            self.kinds[head.kind] += 1
            return
        self.ok += 1
        self.latency.add(head.seconds)
        if head.completion_tokens:
            self.tokens.add(head.completion_tokens)
        slow = Slow(head.seconds, head.line, head.completion_tokens, head.instance)
        if len(self._slowest) < _SLOWEST:
            heapq.heappush(self._slowest, slow)
        elif slow > self._slowest[0]:
            heapq.heapreplace(self._slowest, slow)

    def wants_example(self, kind: str) -> bool:
        """For the first rows of a kind only: a million alike need not all be looked at."""
        return kind != OK and self.kinds[kind] <= _LOOKED_AT

    def add_example(self, kind: str, message: str) -> None:
        examples = self.examples.setdefault(kind, [])
        if message not in examples and len(examples) < _EXAMPLES:
            examples.append(message)

    @property
    def slowest(self) -> tuple[Slow, ...]:
        return tuple(sorted(self._slowest, reverse=True))

    def summary(self) -> Mapping[str, object]:
        """The same numbers for programs."""
        busy = self.timeline.busy_s
        rows = self.ok + self.failed
        quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        return {
            "rows": rows,
            "ok": self.ok,
            "failed": self.failed,
            "errors": dict(self.kinds.most_common()),
            "retried": max(0, self.attempts - sum(self.instances.values())),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "busy_seconds": round(busy, 3),
            "rows_per_second": round(rows / busy, 3) if busy else 0.0,
            "completion_tokens_per_second": (
                round(self.completion_tokens / busy, 3) if busy else 0.0
            ),
            "latency_seconds": {
                name: round(self.latency.quantile(share), 4) for name, share in quantiles.items()
            },
            "instances": dict(sorted(self.instances.items())),
        }
