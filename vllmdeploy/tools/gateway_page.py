"""What the gateway's own numbers say of its instances and of the services behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.command import Result

_PREFIX = "vllmdeploy_gateway_"
_SAMPLE = re.compile(rf"^{_PREFIX}(\w+)(?:\{{(.*)\}})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceState:
    """One instance as the gateway has it; `state` is empty for one that it does not know."""

    state: str = ""
    ready: bool = False
    inflight: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """Counters of one model since the gateway's start."""

    requests: float = 0.0
    failed: float = 0.0
    tokens: float = 0.0
    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class Page:
    """One reading of /metrics, or of several gateways' taken together."""

    samples: tuple[Sample, ...] = field(default_factory=tuple)

    def instance(self, name: str) -> InstanceState:
        state, ready, inflight = "", False, 0
        for sample in self._of("instance", name):
            match sample.name:
                case "instance_state" if sample.value:
                    state = sample.labels.get("state", "")
                case "instance_ready":
                    ready = ready or bool(sample.value)
                case "instance_inflight":
                    inflight += int(sample.value)
                case _:
                    pass
        return InstanceState(state=state, ready=ready, inflight=inflight)

    def model(self, name: str) -> ModelCounts:
        sums: dict[str, float] = {}
        for sample in self._of("model", name):
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
            if sample.name == "requests_total" and sample.labels.get("status") == "5xx":
                sums["failed"] = sums.get("failed", 0.0) + sample.value
        return ModelCounts(
            requests=sums.get("requests_total", 0.0),
            failed=sums.get("failed", 0.0),
            tokens=sums.get("completion_tokens_total", 0.0),
            queued=sums.get("queue_length", 0.0),
        )

    def models(self) -> tuple[str, ...]:
        """Those that are served, whether or not anybody has asked for them."""
        served = {one.labels.get("model", "") for one in self.samples if one.name == "queue_length"}
        return tuple(sorted(served))

    def first_bytes(self, model: str, before: Page) -> dict[float, float]:
        """How many first bytes came within so many seconds, since the page before."""
        counts: dict[float, float] = {}
        for page, sign in ((self, 1.0), (before, -1.0)):
            for sample in page._of("model", model):
                if sample.name == "first_byte_seconds_bucket":
                    bound = float(sample.labels.get("le", "inf"))
                    counts[bound] = counts.get(bound, 0.0) + sign * sample.value
        return counts

    def _of(self, label: str, value: str) -> Iterator[Sample]:
        return (one for one in self.samples if one.labels.get(label) == value)


def quantile(counts: Mapping[float, float], share: float) -> float | None:
    """As Prometheus reckons it: even within a bucket, and no more than the last bound."""
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for bound in bounds:
        count = counts[bound]
        if count >= share * total:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    return low


def parse(text: str) -> Page | None:
    """None for what is not a gateway's page."""
    found = (_sample(*match) for match in _SAMPLE.findall(text))
    samples = tuple(one for one in found if one is not None)
    return Page(samples) if samples else None


def _sample(name: str, labels: str, value: str) -> Sample | None:
    try:
        return Sample(name, dict(_LABEL.findall(labels)), float(value))
    except ValueError:
        return None


def instance(result: Result, name: str) -> InstanceState | None:
    """None where the gateway does not answer."""
    page = parse(result.stdout) if result.ok else None
    return page.instance(name) if page else None
