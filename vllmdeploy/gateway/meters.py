"""The gateway's own numbers, and the text that Prometheus reads."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STATUS_CLASSES = ("gone", "1xx", "2xx", "3xx", "4xx", "5xx")
Labels = tuple[str, ...]


@dataclass(slots=True)
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def add(self, other: Histogram) -> None:
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.sum += other.sum


@dataclass(slots=True)
class Meters:
    """Labels come from our own lists only (routes, models served, instances), never from what a
    client sends, so that nobody can make them grow."""

    requests: dict[Labels, int] = field(default_factory=dict[Labels, int])
    durations: dict[Labels, Histogram] = field(default_factory=dict[Labels, Histogram])
    first_bytes: dict[Labels, Histogram] = field(default_factory=dict[Labels, Histogram])
    waits: dict[Labels, Histogram] = field(default_factory=dict[Labels, Histogram])
    tokens: dict[Labels, int] = field(default_factory=dict[Labels, int])
    refused: dict[Labels, int] = field(default_factory=dict[Labels, int])
    broken_streams: int = 0

    def add(self, other: Meters) -> None:
        for mine, theirs in (
            (self.requests, other.requests),
            (self.tokens, other.tokens),
            (self.refused, other.refused),
        ):
            for labels, count in theirs.items():
                mine[labels] = mine.get(labels, 0) + count
        for own, others in (
            (self.durations, other.durations),
            (self.first_bytes, other.first_bytes),
            (self.waits, other.waits),
        ):
            for labels, histogram in others.items():
                own.setdefault(labels, Histogram()).add(histogram)
        self.broken_streams += other.broken_streams

    def answered(self, route: str, model: str, status: int, seconds: float) -> None:
        labels = (route, model, _STATUS_CLASSES[status // 100])
        self.requests[labels] = self.requests.get(labels, 0) + 1
        observe(self.durations, (route, model), seconds)


def observe(histograms: dict[Labels, Histogram], labels: Labels, seconds: float) -> None:
    found = histograms.get(labels)
    if found is None:
        found = histograms[labels] = Histogram()
    found.observe(seconds)


class Page:
    """One exposition: each family once, with its help and its type."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(
        self,
        name: str,
        kind: str,
        about: str,
        names: Labels,
        samples: Iterable[tuple[Labels, float]],
    ) -> None:
        self._begin(name, kind, about)
        self.lines.extend(f"{name}{_braces(names, labels)} {value}" for labels, value in samples)

    def histogram(
        self, name: str, about: str, names: Labels, samples: Mapping[Labels, Histogram]
    ) -> None:
        self._begin(name, "histogram", about)
        for labels, histogram in samples.items():
            total = 0
            for bound, count in zip((*_SECONDS, float("inf")), histogram.counts, strict=True):
                total += count
                edge = "+Inf" if bound == float("inf") else f"{bound:g}"
                braces = _braces((*names, "le"), (*labels, edge))
                self.lines.append(f"{name}_bucket{braces} {total}")
            braces = _braces(names, labels)
            self.lines.append(f"{name}_sum{braces} {histogram.sum:.6f}")
            self.lines.append(f"{name}_count{braces} {total}")

    def text(self) -> bytes:
        return ("\n".join(self.lines) + "\n").encode("utf-8", "replace")

    def _begin(self, name: str, kind: str, about: str) -> None:
        self.lines.append(f"# HELP {name} {about}")
        self.lines.append(f"# TYPE {name} {kind}")


def _braces(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    pairs = (f'{name}="{escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
