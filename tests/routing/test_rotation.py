from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.routing.health import Health
from vllmdeploy.routing.load import Load
from vllmdeploy.routing.rotation import available, serving
from vllmdeploy.routing.states import State
from vllmdeploy.routing.upstream import Address, Upstream

MARKS = {
    "+": State.READY,
    "?": State.SUSPECT,
    "e": State.EJECTED,
    "-": State.DOWN,
    "s": State.STARTING,
    "d": State.DRAINING,
    "x": State.DRAINED,
}


@dataclass
class Instance:
    upstream: Upstream
    health: Health
    load: Load = field(default_factory=Load)


def fleet(marks: str, limit: int = 4) -> list[Instance]:
    return [
        Instance(
            Upstream(f"{mark}{n}", Address("h", 8000 + n), limit=limit),
            Health(0.0, state=MARKS[mark]),
        )
        for n, mark in enumerate(marks)
    ]


def names(members: list[Instance]) -> str:
    return " ".join(m.upstream.id for m in members)


def half() -> float:
    return 0.5


@pytest.mark.parametrize(
    ("marks", "chosen"),
    [
        ("++++", "+0 +1 +2 +3"),
        ("+?ee", "+0 ?1"),
        ("+eee", "+0 e1 e2 e3"),
        ("+--e", "+0 e3"),
        ("+---", "+0"),
        ("-e--", "e1"),
        ("--", ""),
        ("+ssss", "+0"),
        ("+ddxx", "+0"),
        ("e", "e0"),
        ("", ""),
    ],
)
def test_panic_ignores_ejections_but_never_a_closed_port(marks: str, chosen: str) -> None:
    assert names(list(serving(fleet(marks)))) == chosen


@given(st.text("+?e-sdx", max_size=12))
def test_nobody_ejected_or_draining_is_chosen_outside_a_panic(marks: str) -> None:
    chosen = {m.health.state for m in serving(fleet(marks))}
    assert not chosen & {State.DOWN, State.STARTING, State.DRAINING, State.DRAINED}
    counted = [mark for mark in marks if mark in "+?e-"]
    if counted and 2 * sum(mark in "+?" for mark in counted) >= len(counted):
        assert State.EJECTED not in chosen


def test_who_is_full_busy_or_tried_is_left_out() -> None:
    members = fleet("+++++")
    members[0].load.inflight = 4
    members[1].health.busy_until = 10.0
    assert names(available(members, 9.0, half, tried=("+2",))) == "+3 +4"
    assert names(available(members, 10.0, half)) == "+1 +2 +3 +4"


def test_one_in_its_slow_start_takes_a_growing_part() -> None:
    members = fleet("++")
    members[1].health.slow_until = 10.0
    tenths = [n / 1000 for n in range(1000)]
    part = Counter[float]()
    for now in (0.0, 5.0, 9.99, 10.0):
        for chance in tenths:
            part[now] += len(available(members, now, lambda c=chance: c)) == 2  # type: ignore[misc]  # default argument binds the value
    assert [part[0.0], part[5.0], part[9.99], part[10.0]] == [100, 550, 1000, 1000]


def test_where_all_are_starting_slowly_all_take_part() -> None:
    members = fleet("++")
    for one in members:
        one.health.slow_until = 10.0
    assert names(available(members, 0.0, lambda: 0.99)) == "+0 +1"
