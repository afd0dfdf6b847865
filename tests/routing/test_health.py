from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vllmdeploy.routing.failure import Failure, failure_of_status
from vllmdeploy.routing.health import Health
from vllmdeploy.routing.states import SERVING, Change, State
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds


def middle() -> float:
    return 0.5


def ready(now: float = 0.0, thresholds: Thresholds = DEFAULTS) -> Health:
    return Health(now, thresholds, state=State.READY)


def fleet(count: int) -> list[Health]:
    return [ready() for _ in range(count)]


def bring_back(one: Health, now: float) -> Change | None:
    """What the owner does to one that is out: checks and, when it wants it, the canary."""
    one.check_passed(now)
    change = one.check_passed(now)
    return one.canary_passed(now) if one.wants_canary(now) else change


def run(events: str, peers: Sequence[Health] = ()) -> Health:
    """One event a second, from second 1: `.` request succeeded, `x` 500, `r` refused, `b` busy,
    `4` 4xx, `p` check passed, `f` check failed, `c` closed port seen by a check, `o` canary
    passed, `e` canary failed, `d` drain, `u` resume, `_` nothing."""
    one = ready()
    others = peers or fleet(3)
    everybody = (one, *others)
    for now, event in enumerate(events, start=1):
        failure = {"x": Failure.SERVER_ERROR, "r": Failure.REFUSED, "b": Failure.BUSY,
                   "4": Failure.CLIENT_ERROR}.get(event)  # fmt: skip
        if failure is not None:
            one.failed(now, failure, everybody, middle)
        elif event == ".":
            one.succeeded(now)
        elif event == "p":
            one.check_passed(now)
        elif event in "fc":
            one.check_failed(now, "no answer", began=now - 0.5, port_closed=event == "c")
        elif event == "o":
            one.canary_passed(now)
        elif event == "e":
            one.canary_failed(now, "500", everybody, middle, began=now - 0.5)
        elif event == "d":
            one.drain(now)
        elif event == "u":
            one.resume(now)
    return one


@pytest.mark.parametrize(
    ("events", "state", "reason"),
    [
        ("....", "ready", ""),
        ("x", "suspect", "server error"),
        ("xx", "suspect", "server error"),
        ("xx.", "ready", "a request succeeded"),
        ("xx.xx.xx.", "ready", "a request succeeded"),
        ("xxx", "ejected", "3 faults in a row, last: server error"),
        ("xbx4x", "ejected", "3 faults in a row, last: server error"),
        ("bbbbbbbb", "ready", ""),
        ("44444444", "ready", ""),
        ("r", "down", "connection refused"),
        ("xxxr", "down", "connection refused"),
        ("f", "suspect", "no answer"),
        ("fp", "ready", "check passed"),
        ("fpf", "suspect", "no answer"),
        ("ff", "down", "no answer"),
        ("c", "down", "no answer"),
        ("f.", "suspect", "no answer"),
        ("xp", "suspect", "server error"),
        ("e", "ejected", "canary failed: 500"),
        ("rpp", "down", "connection refused"),
        ("rppo", "ready", "checks pass"),
        ("rpo", "down", "connection refused"),
        ("rpop", "ready", "checks pass"),
        ("rpfpo", "down", "connection refused"),
        ("r....", "down", "connection refused"),
        ("rxxxx", "down", "connection refused"),
        ("rppe", "down", "canary failed: 500"),
        ("xxxppo", "ejected", "3 faults in a row, last: server error"),
        ("xxx_____ppo", "ready", "checks pass"),
        ("xxxff", "down", "no answer"),
        ("d", "draining", "drain asked for"),
        ("drxffecppo", "draining", "drain asked for"),
        ("dd", "draining", "drain asked for"),
        ("du", "starting", "resumed"),
        ("duppo", "ready", "checks pass"),
        ("u", "ready", ""),
    ],
)
def test_a_series_of_observations_leads_to_a_state_with_its_reason(
    events: str, state: str, reason: str
) -> None:
    one = run(events)
    assert (one.state.value, one.reason) == (state, reason)


def test_every_change_says_when_from_what_to_what_and_why() -> None:
    one = ready()
    assert one.failed(3.0, Failure.REFUSED, (one,), middle) == Change(
        3.0, State.READY, State.DOWN, "connection refused"
    )
    assert one.failed(4.0, Failure.REFUSED, (one,), middle) is None


def test_a_new_instance_is_starting_and_not_down_while_its_port_is_closed() -> None:
    one = Health(0.0)
    for now in range(600):
        one.check_failed(now, "connection refused", began=now, port_closed=True)
    assert (one.state, one.reason) == (State.STARTING, "connection refused")
    assert one.check_delay(middle) == 0.5
    assert one.wants_canary(600) is False
    assert bring_back(one, 601.0) == Change(601.0, State.STARTING, State.READY, "checks pass")


def test_one_check_and_a_token_are_enough_for_an_engine_that_never_failed() -> None:
    one = Health(0.0)
    assert not one.wants_canary(0.5)
    assert one.check_passed(0.5) is None
    assert one.wants_canary(0.5)
    change = one.canary_passed(0.6)
    assert change is not None
    assert change.after is State.READY


def test_without_a_canary_checks_are_enough() -> None:
    one = Health(0.0, Thresholds(canary=False))
    assert one.check_passed(0.5) is None
    change = one.check_passed(1.0)
    assert change is not None
    assert change.after is State.READY
    assert one.wants_canary(1000.0) is False


def test_half_of_twenty_requests_failing_ejects() -> None:
    one, peers = ready(), fleet(3)
    changes = [
        one.failed(1.0, Failure.RESET, (one, *peers), middle) if n % 2 else one.succeeded(1.0)
        for n in range(20)
    ]
    assert changes[-1] == Change(
        1.0, State.READY, State.EJECTED,
        "10 of 20 requests failed, last: connection lost before an answer",
    )  # fmt: skip


def test_nineteen_requests_or_older_than_ten_seconds_are_no_evidence() -> None:
    one, peers = ready(), fleet(3)
    for n in range(100):
        if n % 2:
            one.failed(n, Failure.RESET, (one, *peers), middle)
        else:
            one.succeeded(n)
    assert one.state in SERVING


@pytest.mark.parametrize(
    ("before", "seconds"), [(0, 5), (1, 10), (2, 20), (3, 40), (6, 300), (60, 300)]
)
def test_each_ejection_is_twice_as_long_as_the_last_up_to_five_minutes(
    before: int, seconds: float
) -> None:
    one, peers, now = ready(), fleet(3), 0.0
    ejected_at = out_until = 0.0
    for _ in range(before + 1):
        for _ in range(3):
            one.failed(now, Failure.SERVER_ERROR, (one, *peers), middle)
        ejected_at, out_until = now, one.out_until
        now = out_until
        bring_back(one, now)
    assert out_until - ejected_at == seconds


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_ejections_are_spread_by_a_fifth(chance: float, seconds: float) -> None:
    one, peers = ready(), fleet(3)
    for _ in range(3):
        one.failed(0.0, Failure.SERVER_ERROR, (one, *peers), lambda: chance)
    assert one.out_until == pytest.approx(seconds)


def test_earlier_ejections_are_forgiven_by_time_in_service() -> None:
    one, peers, now, length = ready(), fleet(3), 0.0, 0.0
    for pause in (0.0, 0.0, 60.0):
        now += pause
        for _ in range(3):
            one.failed(now, Failure.SERVER_ERROR, (one, *peers), middle)
        length = one.out_until - now
        now = one.out_until
        bring_back(one, now)
    assert length == 5.0


@pytest.mark.parametrize(("served_s", "waits"), [(1.0, [0, 5, 10, 20, 40]), (5.0, [0, 0, 0, 0, 0])])
def test_a_flapping_port_stays_out_longer_each_time_but_a_restart_does_not(
    served_s: float, waits: list[float]
) -> None:
    one, now, found = ready(), 0.0, list[float]()
    for _ in waits:
        one.failed(now, Failure.REFUSED, (one,), middle)
        found.append(one.out_until - now)
        bring_back(one, one.out_until)
        now = one.out_until + served_s
    assert found == waits


def test_all_requests_that_one_death_lost_are_one_fault() -> None:
    one, peers = ready(), fleet(3)
    for _ in range(100):
        one.failed(10.0, Failure.RESET, (one, *peers), middle, began=9.0)
    assert (one.state, one.reason) == (State.SUSPECT, "connection lost before an answer")
    one.failed(11.0, Failure.RESET, (one, *peers), middle, began=10.5)
    assert one.failed(12.0, Failure.CUT, (one, *peers), middle, began=11.5) == Change(
        12.0, State.SUSPECT, State.EJECTED, "3 faults in a row, last: connection lost in the answer"
    )


def test_a_failed_canary_keeps_an_ejected_one_out_for_longer() -> None:
    one, peers = run("xxx"), fleet(3)
    one.check_passed(4.0)
    one.check_passed(5.0)
    assert (one.wants_canary(7.9), one.wants_canary(8.0)) == (False, True)
    assert one.canary_failed(8.0, "500", (one, *peers), middle, began=8.0) is None
    assert one.out_until == 18.0
    assert (one.wants_canary(17.9), one.wants_canary(18.0)) == (False, True)


def test_the_last_one_that_serves_is_never_ejected() -> None:
    one = ready()
    down = [run("r"), run("r")]
    for _ in range(9):
        one.failed(1.0, Failure.SERVER_ERROR, (one, *down), middle)
    assert one.state is State.SUSPECT
    assert one.reason == "9 faults in a row, last: server error; kept, too few others"


def test_no_more_than_half_are_ejected_however_bad_all_of_them_are() -> None:
    for count in range(1, 9):
        members = fleet(count)
        for _ in range(30):
            for one in members:
                one.failed(1.0, Failure.SERVER_ERROR, members, middle)
        assert sum(m.state is State.EJECTED for m in members) == count // 2


def test_a_kept_hung_instance_is_not_called_ready_because_its_port_answers() -> None:
    one = ready()
    one.canary_failed(20.0, "no answer in 20 s", (one,), middle, began=0.0)
    assert one.check_passed(22.0) is None
    one.canary_passed(40.0)
    assert one.check_passed(42.0) == Change(42.0, State.SUSPECT, State.READY, "check passed")


def test_a_real_answer_outweighs_a_slow_check_or_canary() -> None:
    one, peers = ready(), fleet(3)
    one.succeeded(11.0)
    assert one.check_failed(12.0, "timed out", began=10.0) is None
    assert one.canary_failed(30.0, "timed out", (one, *peers), middle, began=10.0) is None
    assert one.state is State.READY


def test_the_canary_is_asked_for_only_after_fifteen_quiet_seconds() -> None:
    one = ready()
    assert (one.wants_canary(14.9), one.wants_canary(15.0)) == (False, True)
    one.succeeded(15.0)
    assert (one.wants_canary(29.9), one.wants_canary(30.0)) == (False, True)
    one.canary_passed(31.0)
    assert (one.wants_canary(45.9), one.wants_canary(46.0)) == (False, True)
    one.drain(46.0)
    assert one.wants_canary(1000.0) is False


def test_an_engine_that_runs_requests_and_makes_no_token_is_hung() -> None:
    one, peers = ready(), fleet(3)
    everybody = (one, *peers)
    for now in range(0, 40, 2):
        one.progressed(now, running=3, tokens=min(now, 8), peers=everybody, chance=middle)
    assert (one.state, one.reason, one.since) == (
        State.EJECTED,
        "3 requests running and no token for 30 s",
        38,
    )


def test_an_idle_engine_makes_no_tokens_and_is_not_hung() -> None:
    one, peers = ready(), fleet(3)
    for now in range(0, 100, 2):
        one.progressed(now, running=0, tokens=8, peers=(one, *peers), chance=middle)
    one.progressed(101, running=1, tokens=8, peers=(one, *peers), chance=middle)
    assert one.state is State.READY


def test_a_drain_ends_when_nothing_is_in_flight_or_its_time_is_over() -> None:
    one = run("d")
    assert one.drained(2.0, inflight=1) is None
    assert one.drained(3.0, inflight=0) == Change(
        3.0, State.DRAINING, State.DRAINED, "nothing in flight"
    )
    late = run("d")
    assert late.drained(121.0, inflight=2) == Change(
        121.0, State.DRAINING, State.DRAINED, "2 requests still in flight"
    )
    assert late.drained(122.0, inflight=0) is None


@pytest.mark.parametrize(
    ("events", "chance", "delay"),
    [("", 0.5, 2.0), ("", 0.0, 1.6), ("", 1.0, 2.4), ("f", 0.5, 0.0), ("r", 0.5, 0.5)],
)
def test_checks_follow_faster_where_something_is_wrong(
    events: str, chance: float, delay: float
) -> None:
    assert run(events).check_delay(lambda: chance) == pytest.approx(delay)


def test_a_busy_engine_is_left_alone_for_a_growing_moment_and_not_blamed() -> None:
    one, now, holds = ready(), 0.0, list[float]()
    for _ in range(6):
        one.failed(now, Failure.BUSY, (one,), middle)
        one.failed(now, Failure.BUSY, (one,), middle)
        holds.append(one.busy_until - now)
        now = one.busy_until
    assert holds == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    one.succeeded(now)
    assert (one.busy_until, one.state) == (0.0, State.READY)


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (200, None), (204, None), (307, None), (400, Failure.CLIENT_ERROR),
        (429, Failure.CLIENT_ERROR), (500, Failure.SERVER_ERROR), (502, Failure.SERVER_ERROR),
        (503, Failure.BUSY),
    ],
)  # fmt: skip
def test_a_status_says_whether_and_how_it_failed(status: int, failure: Failure | None) -> None:
    assert failure_of_status(status) is failure


@given(st.text("._xr4bpfcoedu", max_size=60))
def test_who_is_out_comes_back_only_through_checks_and_a_canary(events: str) -> None:
    before = run("")
    for end in range(1, len(events) + 1):
        after = run(events[:end])
        if before.state not in SERVING and after.state in SERVING:
            assert events[end - 1] in "po"
        before = after


class FleetMachine(RuleBasedStateMachine):
    """Anything may happen to any of four in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.members = fleet(4)

    @rule(who=st.integers(0, 3), failure=st.sampled_from(Failure))
    def fail(self, who: int, failure: Failure) -> None:
        self._watch(lambda m: m.failed(self.now, failure, self.members, middle), who)

    @rule(who=st.integers(0, 3))
    def succeed(self, who: int) -> None:
        self.members[who].succeeded(self.now)

    @rule(who=st.integers(0, 3))
    def canary(self, who: int) -> None:
        one = self.members[who]
        self._watch(
            lambda m: m.canary_failed(self.now, "500", self.members, middle, began=self.now), who
        )
        assert one.state in State

    @rule(who=st.integers(0, 3), passed=st.booleans())
    def check(self, who: int, passed: bool) -> None:
        one = self.members[who]
        if passed:
            bring_back(one, self.now)
        else:
            one.check_failed(self.now, "timed out", began=self.now)

    @rule(seconds=st.floats(0.1, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def _watch(self, act: object, who: int) -> None:
        assert callable(act)
        serving_before = sum(m.serving for m in self.members)
        change = act(self.members[who])
        if isinstance(change, Change) and change.after is State.EJECTED:
            assert serving_before > 1, "the last one was ejected"

    @invariant()
    def never_more_than_half_ejected(self) -> None:
        assert sum(m.state is State.EJECTED for m in self.members) <= 2


TestFleet = FleetMachine.TestCase
