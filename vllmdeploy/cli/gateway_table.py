"""What `gateway status` shows: instances and models, and what passes between two looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllmdeploy.cli import output
from vllmdeploy.tools.gateway_page import ModelCounts, Page, quantile

_INSTANCES = (
    *("INSTANCE", "STATE", "MODELS", "IN FLIGHT", "RUNNING", "WAITING", "KV", "HITS"),
    *("FIRST BYTE", "REQUESTS", "REQ/S", "TOKENS/S", "FAILED", "WHY"),
)
_MODELS = (
    *("MODEL", "QUEUE", "REQUESTS", "REQ/S", "TOKENS/S", "FIRST BYTE p50", "p99"),
    "FAILED",
)
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the gateway said at one moment."""

    at: float
    instances: Sequence[Mapping[str, Any]]
    page: Page


def instances_table(now: Sequence[Mapping[str, Any]]) -> str:
    return _instances(now, {}, 0.0)


def tables(before: Look | None, now: Look) -> str:
    """Rates and latencies are of the time since the look before, else of the gateway's life."""
    seconds = now.at - before.at if before else 0.0
    earlier = {str(one.get("id", "")): one for one in before.instances} if before else {}
    page = before.page if before else Page()
    rows = [_model_row(name, page, now.page, seconds) for name in now.page.models()]
    models = (output.table(_MODELS, rows),) if rows else ()
    return "\n\n".join((_instances(now.instances, earlier, seconds), *models))


def _instances(
    now: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, Any]], seconds: float
) -> str:
    rows = [_row(one, before.get(str(one.get("id", "")), _NOTHING), seconds) for one in now]
    return output.table(_INSTANCES, rows)


def _row(one: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> tuple[str, ...]:
    hits = one.get("prefix_hit_rate")
    return (
        str(one.get("id", "")),
        str(one.get("state", "")),
        ",".join(map(str, one.get("models", ()))) or "-",
        str(one.get("inflight", "")),
        str(one.get("running", "")),
        str(one.get("waiting", "")),
        f"{float(one.get('kv_usage') or 0):.0%}",
        "-" if hits is None else f"{float(hits):.0%}",
        f"{float(one.get('first_byte_ms') or 0):.0f} ms",
        str(one.get("requests", "")),
        _grown(one, before, "requests", seconds, digits=1),
        _grown(one, before, "generated_tokens", seconds, digits=0),
        str(sum(dict(one.get("failures") or {}).values())),
        str(one.get("reason", "")),
    )


def _grown(
    one: Mapping[str, Any], before: Mapping[str, Any], key: str, seconds: float, *, digits: int
) -> str:
    if key not in before:
        return "-"
    return _rate(float(before[key]), float(one.get(key) or 0), seconds, digits)


def _rate(before: float, now: float, seconds: float, digits: int) -> str:
    """Who began anew counts from 0."""
    return f"{max(0.0, now - before) / seconds:.{digits}f}" if seconds else "-"


def _model_row(name: str, before: Page, now: Page, seconds: float) -> tuple[str, ...]:
    then: ModelCounts = before.model(name)
    counts = now.model(name)
    since = now.first_bytes(name, before)
    return (
        name,
        f"{counts.queued:.0f}",
        f"{counts.requests:.0f}",
        _rate(then.requests, counts.requests, seconds, 1),
        _rate(then.tokens, counts.tokens, seconds, 0),
        _milliseconds(quantile(since, 0.5)),
        _milliseconds(quantile(since, 0.99)),
        f"{counts.failed:.0f}",
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms"
