"""The live table of a gateway: what passed between two looks, by instance and by model."""

from __future__ import annotations

from vllmdeploy.cli.gateway_table import Look, tables
from vllmdeploy.tools.gateway_page import parse, quantile

PAGE = """\
vllmdeploy_gateway_requests_total{{route="/generate",model="m",status="2xx"}} {requests}
vllmdeploy_gateway_requests_total{{route="/generate",model="m",status="5xx"}} 1
vllmdeploy_gateway_completion_tokens_total{{model="m"}} {tokens}
vllmdeploy_gateway_queue_length{{model="m"}} 3
vllmdeploy_gateway_queue_length{{model="idle"}} 0
vllmdeploy_gateway_first_byte_seconds_bucket{{model="m",le="0.1"}} {quick}
vllmdeploy_gateway_first_byte_seconds_bucket{{model="m",le="0.2"}} {all}
vllmdeploy_gateway_first_byte_seconds_bucket{{model="m",le="+Inf"}} {all}
"""


def look(at: float, **counts: int) -> Look:
    page = parse(PAGE.format(**counts))
    assert page is not None
    instance: dict[str, object] = {
        "id": "i",
        "state": "ready",
        "models": ["m"],
        "inflight": 1,
        "reason": "checks pass",
        "requests": counts["requests"],
        "generated_tokens": counts["tokens"],
        "failures": {},
    }
    return Look(at=at, instances=[instance], page=page)


def words(text: str, first: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(f"{first} "))


def test_rates_and_latencies_are_of_the_time_between_two_looks() -> None:
    before = look(10.0, requests=100, tokens=1000, quick=100, all=100)
    shown = tables(before, look(12.0, requests=110, tokens=1400, quick=100, all=110))
    assert words(shown, "m") == [
        *("m", "3", "111", "5.0", "200", "150", "ms", "199", "ms", "1"),
    ]
    assert words(shown, "i")[-6:-3] == ["110", "5.0", "200"]
    assert words(shown, "idle")[1:] == ["0", "0", "0.0", "0", "-", "-", "0"]


def test_one_look_alone_has_no_rates_and_the_latencies_of_all_time() -> None:
    shown = tables(None, look(12.0, requests=110, tokens=1400, quick=110, all=110))
    assert words(shown, "m")[3:7] == ["-", "-", "50", "ms"]


def test_a_gateway_that_began_anew_counts_from_nothing() -> None:
    before = look(10.0, requests=100, tokens=1000, quick=100, all=100)
    shown = tables(before, look(12.0, requests=5, tokens=10, quick=5, all=5))
    assert words(shown, "m")[3:5] == ["0.0", "0"]


def test_what_took_longer_than_all_bounds_is_told_as_the_last_one() -> None:
    assert quantile({0.1: 0.0, 0.2: 1.0, float("inf"): 10.0}, 0.99) == 0.2
    assert quantile({}, 0.5) is None
