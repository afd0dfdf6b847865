"""Reads what routing needs from an engine's /metrics page."""

from __future__ import annotations

import math
import re

from vllmdeploy.routing.load import Observed

# vLLM renamed some of them over its versions; the first that is there counts.
_RUNNING = ("vllm:num_requests_running",)
_WAITING = ("vllm:num_requests_waiting",)
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_GENERATED = ("vllm:generation_tokens_total",)
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")

_LINE = re.compile(r"^(vllm:\w+)(?:\{[^\n]*\})? +([^ \n]+)", re.MULTILINE)


def observed_of(page: str, now: float) -> Observed | None:
    """None where the page is not vLLM's. Series of several engine cores are added up."""
    sums: dict[str, float] = {}
    for name, text in _LINE.findall(page):
        value = _number(text)
        if value is not None:
            sums[name] = sums.get(name, 0.0) + value
    if _RUNNING[0] not in sums:
        return None
    return Observed(
        at=now,
        running=int(_first(sums, _RUNNING)),
        waiting=int(_first(sums, _WAITING)),
        kv_usage=_first(sums, _KV_USAGE),
        generated_tokens=_first(sums, _GENERATED),
        prefix_queries=_first(sums, _QUERIES),
        prefix_hits=_first(sums, _HITS),
    )


def _first(sums: dict[str, float], names: tuple[str, ...]) -> float:
    return next((sums[name] for name in names if name in sums), 0.0)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
