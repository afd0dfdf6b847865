from __future__ import annotations

import pytest

from vllmdeploy.node.health import (
    Patience,
    Seen,
    Verdict,
    Watch,
    judge,
    parse_metrics,
    wants_canary,
)

PATIENCE = Patience(health_failures=3, canary_failures=2, canary_every_s=15, stall_s=60)
READY = Watch(ready=True, canary_due=15.0)
GOOD = Seen(health=200, canary=200)


def judged(watch: Watch, *rounds: Seen, every_s: float = 2.0) -> list[Verdict]:
    verdicts: list[Verdict] = []
    for number, seen in enumerate(rounds, start=1):
        watch, verdict = judge(watch, seen, number * every_s, PATIENCE)
        verdicts.append(verdict)
    return verdicts


@pytest.mark.parametrize(
    ("seen", "ready"),
    [
        (Seen(health=0), False),
        (Seen(health=503), False),
        (Seen(health=200), True),
        (Seen(health=200, canary=500), False),
        (Seen(health=200, canary=0), False),
        (Seen(health=200, canary=200), True),
    ],
)
def test_ready_is_health_and_canary(seen: Seen, *, ready: bool) -> None:
    assert judged(Watch(), seen) == [Verdict(ready=ready)]


def test_before_it_is_ready_nothing_counts_against_it() -> None:
    assert not any(verdict.hung for verdict in judged(Watch(), *[Seen(health=0)] * 50))


@pytest.mark.parametrize(
    ("rounds", "hung"),
    [
        ("x", ""),
        ("xx.xx", ""),
        ("xxx", "/health answered 503 3 times in a row"),
        ("xx.xxx", "/health answered 503 3 times in a row"),
    ],
)
def test_health_fails_three_times_in_a_row(rounds: str, hung: str) -> None:
    seen = [Seen(health=503 if mark == "x" else 200) for mark in rounds]
    assert judged(READY, *seen)[-1].hung == hung


def test_no_answer_is_worded_with_its_reason() -> None:
    silent = Seen(health=0, detail="connection refused")
    assert judged(READY, *[silent] * 3)[-1].hung == (
        "/health gave no answer (connection refused) 3 times in a row"
    )


def test_a_failing_canary_finds_what_health_does_not() -> None:
    dead = Seen(health=200, canary=500)
    assert judged(READY, dead, dead)[-1].hung == (
        "the one-token canary answered 500 2 times in a row"
    )


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_queue_refuses_the_canary_without_blame(status: int) -> None:
    assert not any(v.hung for v in judged(READY, *[Seen(health=200, canary=status)] * 10))


def test_tokens_of_real_requests_are_the_better_canary() -> None:
    slow = [Seen(health=200, canary=0, running=4, tokens=float(count)) for count in range(5)]
    assert not any(verdict.hung for verdict in judged(READY, *slow))


def test_requests_that_run_without_a_new_token_are_a_stall() -> None:
    stuck = Seen(health=200, running=2, tokens=7)
    verdicts = judged(READY, *[stuck] * 40)
    assert next(verdict.hung for verdict in verdicts if verdict.hung) == (
        "2 requests are running and no token was generated for 60 s"
    )


def test_an_idle_engine_does_not_stall() -> None:
    idle = Seen(health=200, running=0, tokens=7)
    assert not any(verdict.hung for verdict in judged(READY, *[idle] * 100))


def test_the_canary_is_due_at_the_start_and_then_now_and_again() -> None:
    assert wants_canary(Watch(), 0)
    watch, _ = judge(Watch(), GOOD, 100, PATIENCE)
    assert [wants_canary(watch, now) for now in (101, 114, 115)] == [False, False, True]


def test_metrics_are_summed_over_engines_and_ignore_the_rest() -> None:
    text = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 2.0
vllm:num_requests_running_other{engine="0"} 99
vllm:generation_tokens_total{engine="1"} NaN
vllm:generation_tokens_total{engine="2"} nonsense
"""
    assert parse_metrics(text) == (4.0, 42.0)
    assert parse_metrics("") == (None, None)
