"""How many rows at once, how fast, how long to wait: tables and simulations with a given clock."""

from __future__ import annotations

import heapq
import random

import pytest

from vllmdeploy.batch.limits import Concurrency, Pace, Price, outage_delay, retry_delay


def simulate(
    places: Concurrency, *, slots: int, seconds: float, refuse_above: int | None = None
) -> tuple[list[int], int]:
    """An engine that works on `slots` rows at once, a second each, and queues the others.

    Returns the limit after each second, and how many rows were finished.
    """
    now, done, free_at = 0.0, 0, [0.0] * slots
    flying: list[float] = []
    seen: list[int] = []
    chance = random.Random(7)
    while now < seconds:
        while len(flying) < places.limit:
            if refuse_above is not None and len(flying) >= refuse_above:
                places.refused(now)
                break
            start = max(now, heapq.heappop(free_at))
            end = start + chance.uniform(0.8, 1.2)
            heapq.heappush(free_at, end)
            heapq.heappush(flying, end)
        now = heapq.heappop(flying)
        places.completed(now, 10, saturated=len(flying) + 1 >= places.limit)
        done += 1
        if int(now) >= len(seen):
            seen.append(places.limit)
    return seen, done


@pytest.mark.parametrize("slots", [4, 16, 32, 48, 100, 256])
def test_the_limit_settles_near_what_the_engine_works_on(slots: int) -> None:
    seen, _ = simulate(Concurrency(1024), slots=slots, seconds=300)
    late = seen[150:]
    # Rows too many wait in the engine, rows too few leave it idle: it starts with 32, and stays.
    assert slots * 0.75 <= sum(late) / len(late) <= max(34, slots * 1.6)


@pytest.mark.parametrize("slots", [4, 16, 32, 48, 100, 256])
def test_what_is_lost_while_looking_is_little(slots: int) -> None:
    _, done = simulate(Concurrency(1024), slots=slots, seconds=300)
    assert done >= 0.95 * slots * 300


def test_an_engine_that_takes_all_is_given_all() -> None:
    seen, _ = simulate(Concurrency(256), slots=10_000, seconds=60)
    assert seen[-1] == 256


def test_refusals_bring_the_limit_down_to_what_is_taken() -> None:
    seen, _ = simulate(Concurrency(1024), slots=10_000, seconds=300, refuse_above=50)
    late = seen[100:]
    assert max(late) <= 75
    assert sum(late) / len(late) >= 20


def test_rows_refused_together_halve_the_limit_once() -> None:
    places = Concurrency(64, start=64)
    for _ in range(64):
        places.refused(10.0)
    assert places.limit == 32
    places.refused(12.0)
    assert places.limit == 16


def test_the_way_up_from_a_single_row_is_short() -> None:
    """Counted in rows of a single place, a pause of windows would be minutes of idle engine."""
    places = Concurrency(256, start=2)
    places.refused(0.0)
    assert places.limit == 1
    now, rows = 0.0, 0
    while places.limit < 8:
        now, rows = now + 1.0 / places.limit, rows + 1
        places.completed(now, 10, saturated=True)
    assert rows <= 160


def test_the_limit_never_leaves_its_bounds() -> None:
    places = Concurrency(3)
    assert places.limit == 3
    for second in range(20):
        places.refused(10.0 * second)
    assert places.limit == 1
    for row in range(2000):
        places.completed(300 + row, 1, saturated=True)
    assert 1 <= places.limit <= 3


def test_rows_that_come_slowly_teach_nothing() -> None:
    places = Concurrency(64)
    for row in range(2000):
        places.completed(float(row), 1, saturated=False)
    assert places.limit == 32


def test_an_engine_that_slows_down_gets_less() -> None:
    places = Concurrency(16, start=16)
    now = 0.0
    for step in (0.01, 0.1):
        for _ in range(200):
            now += step
            places.completed(now, 1, saturated=True)
    assert places.limit < 16


def test_a_pace_is_kept_on_average() -> None:
    pace, now, taken = Pace(10.0), 0.0, 0
    while now < 100:
        wait = pace.wait(now)
        if wait:
            now += wait
        else:
            pace.debit(now, 1)
            taken += 1
    assert 1000 <= taken <= 1012


def test_what_was_taken_ahead_is_waited_for() -> None:
    pace = Pace(100 / 60, burst_s=60)
    assert pace.wait(0.0) == 0
    pace.debit(0.0, 300)
    assert pace.wait(0.0) == pytest.approx(120)
    assert pace.wait(119.9) > 0
    assert pace.wait(120.1) == 0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    pace = Pace(1.0)
    pace.debit(100.0, 5)
    before = pace.wait(100.0)
    assert pace.wait(50.0) == before


def test_the_price_is_of_a_million_tokens() -> None:
    assert Price(0.5, 2.0).of(1_000_000, 500_000) == 1.5


@pytest.mark.parametrize("attempt", [0, 1, 5, 10, 10**6])
def test_delays_grow_to_a_bound_and_are_spread(attempt: int) -> None:
    chance = random.Random(attempt)
    retries = [retry_delay(attempt, chance) for _ in range(200)]
    whole = min(20, 0.25 * 2.0 ** min(attempt, 20))
    assert 0 <= min(retries) < whole * 0.1
    assert whole * 0.9 < max(retries) <= whole
    outages = [outage_delay(attempt, chance) for _ in range(200)]
    whole = min(15, 0.5 * 2.0 ** min(attempt, 20))
    assert whole / 2 <= min(outages) <= max(outages) <= whole
