from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.queue import Entry, Leaving, Refusal, WaitingRoom
from vllmdeploy.routing.scheduling import DEFAULT, names, scheduling
from vllmdeploy.routing.upstream import ANY_REQUEST, Request


def room(way: str = "fifo", length: int = 100, timeout_s: float = 60.0) -> WaitingRoom[str]:
    return WaitingRoom(scheduling(way), length=length, timeout_s=timeout_s)


def entered(place: WaitingRoom[str], now: float, item: str, **fields: float) -> Entry[str]:
    deadline = fields.get("deadline")
    request = Request(
        priority=int(fields.get("priority", 0)),
        deadline=deadline,
        max_tokens=int(fields.get("tokens", 256)),
    )
    entry = place.enter(now, item, request)
    assert isinstance(entry, Entry)
    return entry


def served(place: WaitingRoom[str], now: float) -> Iterator[str]:
    while (entry := place.next(now)) is not None:
        yield entry.item


@pytest.mark.parametrize(
    ("way", "order"),
    [
        ("fifo", "long urgent short soon"),
        ("priority", "urgent long short soon"),
        ("slo_aware", "soon long urgent short"),
        ("cost_optimized", "short urgent soon long"),
        ("adaptive", "urgent soon short long"),
    ],
)
def test_each_way_has_its_own_order(way: str, order: str) -> None:
    place = room(way)
    entered(place, 0.0, "long", tokens=4000)
    entered(place, 0.1, "urgent", priority=-1)
    entered(place, 0.2, "short", tokens=16)
    entered(place, 0.3, "soon", deadline=8.0)
    assert " ".join(served(place, 1.0)) == order


@pytest.mark.parametrize("way", names())
def test_equals_are_served_in_the_order_they_came(way: str) -> None:
    place = room(way)
    for item in "abcdef":
        entered(place, 1.0, item)
    assert "".join(served(place, 2.0)) == "abcdef"


@pytest.mark.parametrize("way", ["cost_optimized", "adaptive"])
def test_a_long_request_is_overtaken_only_for_as_long_as_it_takes(way: str) -> None:
    place = room(way)
    entered(place, 0.0, "long", tokens=1000)
    entered(place, 29.0, "overtakes", tokens=10)
    entered(place, 31.0, "comes too late", tokens=10)
    assert list(served(place, 40.0)) == ["overtakes", "long", "comes too late"]


def test_a_full_queue_refuses() -> None:
    place = room(length=2)
    entered(place, 0.0, "a")
    entered(place, 0.0, "b")
    assert place.enter(0.0, "c", ANY_REQUEST) is Refusal.FULL
    assert place.next(0.0) is not None
    assert isinstance(place.enter(0.0, "c", ANY_REQUEST), Entry)


def test_who_waited_too_long_is_told_so() -> None:
    place = room(timeout_s=60.0)
    entered(place, 0.0, "a")
    entered(place, 10.0, "b")
    assert list(place.overdue(59.9)) == []
    assert [(e.item, why) for e, why in place.overdue(60.0)] == [("a", Leaving.TIMED_OUT)]
    assert place.next_end() == 70.0
    assert list(served(place, 61.0)) == ["b"]
    assert place.next_end() is None


def test_a_deadline_that_has_passed_ends_the_wait_where_deadlines_are_kept() -> None:
    place = room("slo_aware")
    entered(place, 0.0, "a", deadline=5.0)
    assert [(e.item, why) for e, why in place.overdue(5.0)] == [("a", Leaving.DEADLINE)]
    heedless = room("fifo")
    entered(heedless, 0.0, "a", deadline=5.0)
    assert list(heedless.overdue(5.0)) == []


def test_who_cannot_make_it_is_refused_at_once() -> None:
    place = room("slo_aware")
    assert place.enter(10.0, "late", Request(deadline=10.0)) is Refusal.DEADLINE
    tight = Request(deadline=12.0)
    assert place.enter(10.0, "a", tight, service_s=2.0) is Refusal.DEADLINE
    assert isinstance(place.enter(10.0, "a", tight, service_s=1.0), Entry)
    entered(place, 10.0, "b")
    assert [place.next(13.0) is None, place.next(16.0) is None] == [False, False]
    assert place.enter(20.0, "c", Request(deadline=22.0)) is Refusal.DEADLINE, "one leaves in 3 s"


def test_who_left_is_not_served_and_leaves_once() -> None:
    place = room()
    first = entered(place, 0.0, "a")
    entered(place, 0.0, "b")
    assert place.leave(first)
    assert not place.leave(first)
    assert place.next_end() == 60.0
    assert list(served(place, 1.0)) == ["b"]


def test_who_found_no_place_after_all_keeps_the_place_it_had() -> None:
    place = room()
    for item in "abc":
        entered(place, 1.0, item)
    first = place.next(2.0)
    assert first is not None
    place.put_back(first)
    assert "".join(served(place, 3.0)) == "abc"


def test_retry_after_follows_the_pace_of_those_who_leave() -> None:
    place = room(timeout_s=60.0)
    assert place.retry_after_s() == 1
    for item in "abcdefghij":
        entered(place, 0.0, item)
    for now in (2.0, 4.0, 6.0):
        place.next(now)
    assert (place.expected_wait_s(), place.retry_after_s()) == (14.0, 14)
    for item in "x" * 60:
        entered(place, 6.0, item)
    assert place.retry_after_s() == 60


def test_time_without_a_queue_does_not_count_as_slowness() -> None:
    place = room()
    for start in (0.0, 1000.0):
        entered(place, start, "a")
        place.next(start + 1.0)
    entered(place, 2000.0, "b")
    assert place.expected_wait_s() == 1.0


def test_memory_stays_with_those_who_wait() -> None:
    place = room(length=10)
    for n in range(10_000):
        entry = entered(place, n / 1000, "x")
        if n % 2:
            place.leave(entry)
        else:
            place.next(n / 1000)
    crowd = [entered(place, 11.0, "x") for _ in range(10)]
    for _ in range(100):
        place.leave(crowd.pop())
        crowd.insert(0, entered(place, 11.0, "x"))
    held = vars(place)
    assert len(held["_next"]) < 100
    assert len(held["_ends"]) < 100


def test_a_misspelt_way_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        scheduling("slo-awar")
    assert str(caught.value) == (
        "unknown scheduling policy 'slo-awar'\n  -> did you mean slo_aware?"
    )
    with pytest.raises(UsageError, match="known: fifo, priority, slo_aware, cost_optimized"):
        scheduling("?")
    assert DEFAULT in names()


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, everybody who entered leaves exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.inside: dict[int, Entry[int]] = {}
        self.place: WaitingRoom[int] = WaitingRoom(
            scheduling("adaptive"), length=20, timeout_s=10.0
        )

    @rule(
        priority=st.integers(-2, 2),
        deadline=st.none() | st.floats(0, 30),
        tokens=st.integers(1, 5000),
    )
    def enter(self, priority: int, deadline: float | None, tokens: int) -> None:
        until = None if deadline is None else self.now + deadline
        request = Request(priority=priority, deadline=until, max_tokens=tokens)
        entry = self.place.enter(self.now, self.number, request)
        if isinstance(entry, Entry):
            self.inside[self.number] = entry
        self.number += 1

    @rule(back=st.booleans())
    def serve(self, back: bool) -> None:
        entry = self.place.next(self.now)
        if entry is None:
            assert not self.inside
        elif back:
            self.place.put_back(entry)
        else:
            assert self.inside.pop(entry.item) is entry

    @precondition(lambda self: bool(self.inside))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.inside)))
        assert self.place.leave(self.inside.pop(number))

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for entry, _ in self.place.overdue(self.now):
            assert self.inside.pop(entry.item) is entry
        assert all(entry.until > self.now for entry in self.inside.values())

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.place) == len(self.inside)


QueueMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestQueue = QueueMachine.TestCase
