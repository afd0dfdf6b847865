from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.routing.failure import NEVER_PROCESSED, Failure
from vllmdeploy.routing.retry import (
    Attempt,
    Budget,
    Verdict,
    charged,
    delay,
    replayable,
    suspicious,
    verdict,
)
from vllmdeploy.routing.thresholds import Thresholds


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (Attempt(Failure.REFUSED, 1), Verdict.RETRY),
        (Attempt(Failure.REFUSED, 1, replayable=False), Verdict.RETRY),
        (Attempt(Failure.STALE, 1, replayable=False), Verdict.RETRY),
        (Attempt(Failure.BUSY, 2, replayable=False), Verdict.RETRY),
        (Attempt(Failure.REFUSED, 3), Verdict.ENOUGH),
        (Attempt(Failure.RESET, 1, suspicions=1), Verdict.RETRY),
        (Attempt(Failure.RESET, 1, replayable=False, suspicions=1), Verdict.NOT_REPLAYABLE),
        (Attempt(Failure.RESET, 2, suspicions=2), Verdict.POISON),
        (Attempt(Failure.SERVER_ERROR, 2), Verdict.RETRY),
        (Attempt(Failure.SERVER_ERROR, 1, replayable=False), Verdict.NOT_REPLAYABLE),
        (Attempt(Failure.GARBAGE, 1), Verdict.RETRY),
        (Attempt(Failure.CUT, 1, suspicions=1), Verdict.RETRY),
        (Attempt(Failure.CUT, 1, answered=True, suspicions=1), Verdict.ANSWERED),
        (Attempt(Failure.STREAM_ERROR, 1, answered=True), Verdict.ANSWERED),
        (Attempt(Failure.CLIENT_ERROR, 1), Verdict.FINAL),
        (Attempt(Failure.CLIENT_GONE, 1), Verdict.FINAL),
    ],
)
def test_whether_to_retry_is_one_question(attempt: Attempt, expected: Verdict) -> None:
    assert verdict(attempt) is expected


@given(st.sampled_from(Failure), st.integers(1, 9), st.booleans(), st.integers(0, 3))
def test_nothing_is_retried_after_the_first_byte(
    failure: Failure, tries: int, again: bool, suspicions: int
) -> None:
    attempt = Attempt(failure, tries, answered=True, replayable=again, suspicions=suspicions)
    assert verdict(attempt) is not Verdict.RETRY


@given(st.lists(st.sampled_from(Failure), max_size=10))
def test_a_request_is_tried_three_times_at_most_and_kills_two_instances_at_most(
    failures: list[Failure],
) -> None:
    tries = suspicions = 0
    for failure in failures:
        tries += 1
        suspicions += suspicious(failure)
        if verdict(Attempt(failure, tries, suspicions=suspicions)) is not Verdict.RETRY:
            break
    assert tries <= 3
    assert suspicions <= 2


def test_only_what_may_have_made_an_instance_work_is_charged_to_the_budget() -> None:
    free = {failure for failure in Failure if not charged(failure)}
    assert free == NEVER_PROCESSED - {Failure.BUSY}


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/generate", True),
        ("POST", "/batch_generate", True),
        ("POST", "/v1/completions", True),
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/tokenize", True),
        ("POST", "/v1/responses", False),
        ("POST", "/v1/load_lora_adapter", False),
        ("POST", "/v1/files", False),
        ("DELETE", "/v1/files/1", False),
        ("GET", "/v1/models", True),
        ("PUT", "/v1/completions", False),
    ],
)
def test_only_what_has_no_effect_may_be_replayed(method: str, path: str, expected: bool) -> None:
    assert replayable(method, path) is expected


def test_a_response_that_is_not_stored_may_be_replayed() -> None:
    assert replayable("POST", "/v1/responses", stored=False)
    assert not replayable("DELETE", "/v1/responses", stored=False)


@given(st.sampled_from(Failure), st.integers(1, 60), st.floats(0, 1, exclude_max=True))
def test_the_pause_is_between_25_and_250_ms_or_none(
    failure: Failure, tries: int, chance: float
) -> None:
    pause = delay(Attempt(failure, tries), lambda: chance)
    if tries == 1 and failure in NEVER_PROCESSED:
        assert pause == 0.0
    else:
        assert 0.025 <= pause <= 0.25


def test_the_pause_grows_with_the_tries() -> None:
    pauses = [delay(Attempt(Failure.RESET, n), lambda: 0.999999) for n in range(1, 6)]
    assert [round(p, 3) for p in pauses] == [0.05, 0.1, 0.2, 0.25, 0.25]


def taken(budget: Budget, now: float, tries: int, *, active: int, largest: int) -> int:
    return sum(budget.take(now, active=active, largest=largest) for _ in range(tries))


@pytest.mark.parametrize(
    ("active", "largest", "granted"), [(0, 0, 3), (10, 2, 3), (100, 8, 20), (64, 32, 32)]
)
def test_the_budget_is_a_fifth_of_the_active_or_all_that_one_instance_held(
    active: int, largest: int, granted: int
) -> None:
    assert taken(Budget(0.0), 0.0, 500, active=active, largest=largest) == granted


def test_a_dying_instance_drains_its_own_count_while_its_requests_are_retried() -> None:
    budget = Budget(0.0)
    assert all(budget.take(n / 1000, active=64, largest=32 - n) for n in range(32))


def test_what_was_spent_comes_back_slowly_and_with_requests() -> None:
    budget = Budget(0.0)
    assert taken(budget, 0.0, 99, active=0, largest=0) == 3
    assert taken(budget, 1.0, 99, active=0, largest=0) == 0
    assert taken(budget, 4.0, 99, active=0, largest=0) == 1
    for _ in range(10):
        budget.begun()
    assert taken(budget, 4.0, 99, active=0, largest=0) == 1
    fresh = Budget(0.0)
    fresh.begun()
    assert taken(fresh, 0.0, 99, active=0, largest=0) == 3, "nothing is saved up beyond the burst"


def test_when_everything_fails_upstreams_see_less_than_a_fifth_more_requests() -> None:
    budget, calls, requests = Budget(0.0), 0, 10_000
    for n in range(requests):
        now = n / 500
        budget.begun()
        tries = 1
        attempt = Attempt(Failure.SERVER_ERROR, tries)
        while verdict(attempt) is Verdict.RETRY and budget.take(now, active=64, largest=16):
            tries += 1
            attempt = Attempt(Failure.SERVER_ERROR, tries)
        calls += tries
    assert calls / requests < 1.2


def test_the_limits_are_arguments() -> None:
    never = Thresholds(retries=0, retry_min=0)
    assert verdict(Attempt(Failure.REFUSED, 1), never) is Verdict.ENOUGH
    assert not Budget(0.0, never).take(0.0, active=0, largest=0)
