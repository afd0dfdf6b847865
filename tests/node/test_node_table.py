from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.node.table import (
    TABLE,
    Action,
    Cleared,
    Due,
    Event,
    Exited,
    Life,
    Limits,
    Needs,
    Phase,
    Ready,
    Retry,
    SpawnFailed,
    Stop,
    Unhealthy,
    decide,
    exit_words,
)

LIMITS = Limits()


def lived(*events: Event, every_s: float = 1.0, life: Life | None = None) -> tuple[Life, list[str]]:
    """What became of a child after the events, and a transcript of what was done."""
    life = life or Life(limits=LIMITS)
    history: list[str] = []
    for number, event in enumerate(events):
        life, actions = decide(life, event, number * every_s)
        history.append(" ".join((life.phase.value, *(action.value for action in actions))))
    return life, history


MET = Needs("")
STARTED = (MET, Ready())


def test_a_child_starts_when_its_needs_are_met_and_runs_when_it_is_ready() -> None:
    assert lived(Needs("waiting for the head"), MET, Ready())[1] == [
        "waiting",
        "starting spawn",
        "running",
    ]


@pytest.mark.parametrize(("stop_s", "given"), [(45.0, 10.0), (3.0, 3.0)])
def test_one_that_still_starts_is_not_waited_for_as_long(stop_s: float, given: float) -> None:
    limits = replace(LIMITS, stop_s=stop_s)
    starting, _ = lived(MET, Stop(), life=Life(limits=limits))
    running, _ = lived(*STARTED, Stop(), life=Life(limits=limits))
    assert starting.deadline == 1.0 + given
    assert running.deadline == 2.0 + stop_s


@pytest.mark.parametrize("code", [0, 1, -9])
def test_an_exit_of_any_code_that_nobody_asked_for_is_a_failure(code: int) -> None:
    life, history = lived(*STARTED, Exited(code), Cleared())
    assert history[2:] == ["clearing clear", "backing-off"]
    assert (life.reason, len(life.failures)) == (exit_words(code), 1)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0 without being asked to"),
        (3, "exited with code 3"),
        (-9, "killed by signal 9"),
    ],
)
def test_an_exit_is_worded(code: int, words: str) -> None:
    assert exit_words(code) == words


def test_a_hung_child_is_killed_with_the_reason_kept() -> None:
    life, history = lived(*STARTED, Unhealthy("no token for 60 s"), Cleared())
    assert history[2:] == ["clearing clear", "backing-off"]
    assert life.reason == "no token for 60 s"


def test_a_child_that_is_never_ready_is_killed_at_its_start_limit() -> None:
    life, history = lived(MET, Due(), Cleared())
    assert history == ["starting spawn", "clearing clear", "backing-off"]
    assert life.reason == "not ready within 180 s"


def test_delays_grow_and_the_failure_after_the_last_one_gives_up() -> None:
    life = Life(limits=LIMITS)
    now, delays = 0.0, list[float]()
    for _ in range(5):
        life, _ = decide(life, MET, now)
        life, _ = decide(life, Exited(1), now)
        life, _ = decide(life, Cleared(), now)
        if life.deadline is not None:
            delays.append(life.deadline - now)
            now = life.deadline
            life, _ = decide(life, Due(), now)
    assert delays == [1, 3, 10, 30]
    assert (life.phase, life.reason) == (
        Phase.CRASH_LOOP,
        "5 failures within 15 minutes, gave up; the last: exited with code 1",
    )


def test_failures_older_than_the_window_are_forgiven() -> None:
    old = Life(limits=LIMITS, phase=Phase.CLEARING, failures=(0, 1, 2, 3), lacking="", failed=True)
    assert decide(old, Cleared(), 903.0)[0].phase == Phase.BACKING_OFF
    assert decide(old, Cleared(), 899.0)[0].phase == Phase.CRASH_LOOP


def test_given_up_is_given_up_until_a_retry_which_starts_with_a_clean_slate() -> None:
    life, _ = lived(MET, SpawnFailed("no ray here", final=True))
    assert (life.phase, life.reason) == (Phase.CRASH_LOOP, "no ray here")
    again, history = lived(MET, Due(), Retry(), life=life)
    assert history == ["crash-loop", "crash-loop", "starting spawn"]
    assert again.failures == ()


def test_a_spawn_that_may_work_later_backs_off() -> None:
    assert lived(MET, SpawnFailed("no memory"))[1] == ["starting spawn", "backing-off"]


def test_a_child_whose_need_went_away_is_cleared_without_blame_and_waits() -> None:
    life, history = lived(*STARTED, Needs("waiting for Ray"), Cleared(), MET)
    assert history[2:] == ["clearing clear", "waiting", "starting spawn"]
    assert life.failures == ()


def test_a_child_that_dies_just_before_its_need_is_seen_gone_is_not_blamed_either() -> None:
    life, history = lived(*STARTED, Exited(1), Needs("waiting for the head"), Cleared())
    assert history[2:] == ["clearing clear", "clearing", "waiting"]
    assert (life.failures, life.reason) == ((), "waiting for the head")


def test_stop_gives_time_then_clears_what_is_left() -> None:
    assert lived(*STARTED, Stop(), Exited(0), Cleared())[1][2:] == [
        "stopping terminate",
        "clearing clear",
        "stopped",
    ]
    assert lived(*STARTED, Stop(), Due(), Cleared())[1][2:] == [
        "stopping terminate",
        "clearing clear",
        "stopped",
    ]


@pytest.mark.parametrize("before", [(), (MET, SpawnFailed("x")), (MET, SpawnFailed("x", True))])
def test_stop_of_what_does_not_run_needs_no_action(before: tuple[Event, ...]) -> None:
    assert lived(*before, Stop())[1][-1] == "stopped"


def test_stop_while_clearing_ends_there() -> None:
    assert lived(*STARTED, Exited(1), Stop(), Cleared())[1][2:] == [
        "clearing clear",
        "clearing",
        "stopped",
    ]


EVENTS = st.one_of(
    st.sampled_from([Ready(), Cleared(), Due(), Retry(), Stop()]),
    st.sampled_from(["", "", "waiting for Ray"]).map(Needs),
    st.integers(-15, 3).map(Exited),
    st.just(Unhealthy("hung")),
    st.booleans().map(lambda final: SpawnFailed("no", final)),
)
STEPS = st.lists(st.tuples(EVENTS, st.floats(0, 40)), max_size=120)


@given(STEPS)
def test_spawns_within_a_window_are_bounded_without_retry_or_lost_needs(
    steps: list[tuple[Event, float]],
) -> None:
    life, now = Life(limits=LIMITS), 0.0
    spawns: list[float] = []
    for event, passed in steps:
        if isinstance(event, Retry) or (isinstance(event, Needs) and event.lacking):
            continue
        now += passed
        life, actions = decide(life, event, now)
        spawns.extend(now for action in actions if action is Action.SPAWN)
        recent = [at for at in spawns if now - at < LIMITS.window_s]
        # A run that was good for most of the window may add its own start to its failures.
        assert len(recent) <= len(LIMITS.delays) + 2


@given(STEPS)
def test_back_off_stays_within_its_bounds_and_every_deadline_is_ahead(
    steps: list[tuple[Event, float]],
) -> None:
    life, now = Life(limits=LIMITS), 0.0
    for event, passed in steps:
        now += passed
        before = life
        life, _ = decide(life, event, now)
        if life.phase == Phase.BACKING_OFF and before.phase != Phase.BACKING_OFF:
            assert life.deadline is not None
            assert 1.0 <= life.deadline - now <= 30.0 + 1e-6


@given(STEPS, STEPS)
def test_after_stop_nothing_is_started_and_stopped_is_final(
    before: list[tuple[Event, float]], after: list[tuple[Event, float]]
) -> None:
    life, now = Life(limits=LIMITS), 0.0
    for event, passed in before:
        now += passed
        life, _ = decide(life, event, now)
    life, _ = decide(life, Stop(), now)
    for event, passed in after:
        now += passed
        was = life.phase
        life, actions = decide(life, event, now)
        assert Action.SPAWN not in actions
        assert was != Phase.STOPPED or (life.phase == Phase.STOPPED and not actions)


@given(STEPS)
def test_what_was_spawned_is_cleared_before_the_next_spawn(
    steps: list[tuple[Event, float]],
) -> None:
    life, now, up = Life(limits=LIMITS), 0.0, False
    for event, passed in steps:
        now += passed
        life, actions = decide(life, event, now)
        if isinstance(event, SpawnFailed) and life.phase in (Phase.BACKING_OFF, Phase.CRASH_LOOP):
            up = False
        if Action.CLEAR in actions:
            up = False
        if Action.SPAWN in actions:
            assert not up
            up = True


def test_every_phase_is_reachable_by_events() -> None:
    samples: list[Event] = [
        *(MET, Needs("x"), Ready(), Exited(1), Unhealthy("x"), Cleared(), Due(), Retry(), Stop()),
        *(SpawnFailed("x"), SpawnFailed("x", final=True)),
    ]
    reached, frontier = {Phase.WAITING}, [Life(limits=LIMITS)]
    while frontier:
        life = frontier.pop()
        for event in samples:
            following, _ = decide(life, event, 0.0)
            if following.phase not in reached:
                reached.add(following.phase)
                frontier.append(following)
    assert reached == set(Phase)


def test_a_pair_outside_the_table_changes_nothing() -> None:
    outside = [
        (phase, event)
        for phase in Phase
        for event in (Ready(), Exited(1), Cleared(), Due(), Retry(), Stop(), Unhealthy("x"))
        if (phase, type(event)) not in TABLE
    ]
    assert outside
    for phase, event in outside:
        life = replace(Life(limits=LIMITS), phase=phase)
        assert decide(life, event, 5.0) == (life, ())
