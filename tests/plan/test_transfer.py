"""The schedule of a distribution: complete, never over-subscribed, never twice, close to the
limit of the wires."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.transfer_fluid import Fluid, pieces
from vllmdeploy.plan.transfer import Swarm
from vllmdeploy.plan.transfer_pieces import Piece, Transfer, with_ranges

MiB = 1024 * 1024
LINE = 12.5e6  # 100 Mbit/s
SHARDS = [32 * MiB] * 30


def swarm_of(hosts: int, sizes: list[int], *, direct: bool = True) -> Swarm:
    swarm = Swarm(pieces(*sizes))
    swarm.join("head", has=range(len(sizes)), receives=False)
    for number in range(hosts):
        swarm.join(f"h{number}", direct=direct)
    return swarm


def rates(hosts: int, **other: float) -> dict[str, float]:
    return {"head": LINE, **{f"h{number}": LINE for number in range(hosts)}, **other}


def shown(transfers: tuple[Transfer, ...]) -> list[str]:
    return [f"{each.source} -> {each.target}: {each.piece.number}" for each in transfers]


def ratio(seconds: float, sizes: list[int]) -> float:
    return round(seconds / (sum(sizes) / LINE), 3)


# Single decisions


def test_the_biggest_pieces_go_first_and_each_to_another_host() -> None:
    swarm = swarm_of(3, [1 * MiB, 9 * MiB, 5 * MiB])
    assert [piece.size for piece in swarm.pieces] == [9 * MiB, 5 * MiB, 1 * MiB]
    assert shown(swarm.next(0.0)) == ["head -> h0: 0", "head -> h1: 1"]


def test_nothing_is_started_twice() -> None:
    swarm = swarm_of(3, [MiB, MiB])
    swarm.next(0.0)
    assert swarm.next(0.0) == ()


def test_transfers_between_two_hosts_share_connections_one_after_another() -> None:
    swarm = swarm_of(1, [MiB] * 4)
    first, second = swarm.next(0.0)
    assert (first.stream, second.stream) == (0, 1)
    swarm.moved(first, 1.0)
    (third,) = swarm.next(1.0)
    assert third.stream == 0
    swarm.arrived(second, 2.0)
    (fourth,) = swarm.next(2.0)
    assert fourth.stream == 1


def test_a_host_sends_a_piece_as_soon_as_it_has_it() -> None:
    swarm = swarm_of(2, [4 * MiB])
    first, second = swarm.next(0.0)
    assert shown((first, second)) == ["head -> h0: 0", "head -> h1: 0"]
    swarm.failed(second, 1.0)
    swarm.arrived(first, 1.0)
    assert shown(swarm.next(1.0)) == ["h0 -> h1: 0"]


def test_the_line_is_free_while_a_piece_is_being_verified() -> None:
    swarm = swarm_of(1, [MiB, MiB, MiB])
    first, _ = swarm.next(0.0)
    swarm.moved(first, 1.0)
    assert shown(swarm.next(1.0)) == ["head -> h0: 2"]
    assert not swarm.complete("h0")


def test_the_rarest_piece_goes_first() -> None:
    swarm = Swarm(pieces(MiB, MiB, MiB), lanes=1)
    swarm.join("a", has=(0, 1, 2), receives=False)
    swarm.join("b", has=(0, 1), receives=False)
    swarm.join("c", has=(0,), receives=False)
    swarm.lost("c")
    swarm.lost("b")
    swarm.join("d")
    assert shown(swarm.next(0.0)) == ["a -> d: 2"]


def test_what_a_host_is_spared_it_neither_gets_nor_gives() -> None:
    swarm = Swarm(pieces(MiB, MiB))
    swarm.join("a", has=(0, 1), receives=False)
    swarm.join("b", spared=(0,))
    assert [piece.number for piece in swarm.missing("b")] == [1]
    (only,) = swarm.next(0.0)
    assert shown((only,)) == ["a -> b: 1"]
    swarm.arrived(only, 1.0)
    assert swarm.complete("b")
    swarm.lost("a")
    swarm.join("c")
    assert shown(swarm.next(1.0)) == ["b -> c: 1"]
    assert swarm.hopeless == ()
    swarm.join("d", spared=(0, 1))
    assert swarm.complete("d")


def test_a_failed_pair_waits_longer_each_time_and_others_do_not() -> None:
    swarm = Swarm(pieces(MiB))
    swarm.join("a", has=(0,), receives=False)
    swarm.join("b")
    (first,) = swarm.next(0.0)
    swarm.failed(first, 10.0)
    assert swarm.next(10.0) == ()
    assert swarm.wake_at(10.0) == 11.0
    (again,) = swarm.next(11.0)
    swarm.failed(again, 12.0)
    assert swarm.next(13.9) == ()
    swarm.join("c", has=(0,), receives=False)
    assert shown(swarm.next(16.1)) == ["c -> b: 0"]


def test_a_source_whose_piece_is_wrong_is_not_asked_for_it_again() -> None:
    swarm = Swarm(pieces(MiB))
    swarm.join("a", has=(0,), receives=False)
    swarm.join("b")
    (only,) = swarm.next(0.0)
    swarm.failed(only, 1.0, bad_source=True)
    assert swarm.next(100.0) == ()
    assert swarm.hopeless == ("b",)
    assert [piece.number for piece in swarm.missing("b")] == [0]


def test_a_lost_host_gets_and_gives_nothing_until_it_joins_again() -> None:
    swarm = swarm_of(1, [MiB, MiB])
    one, other = swarm.next(0.0)
    swarm.lost("h0")
    swarm.failed(one, 1.0)
    swarm.failed(other, 1.0)
    assert swarm.next(60.0) == ()
    swarm.join("h0", has=(0,))
    assert shown(swarm.next(60.0)) == ["head -> h0: 1"]


def test_what_still_runs_to_a_host_that_joins_again_is_not_started_a_second_time() -> None:
    swarm = swarm_of(1, [MiB])
    swarm.next(0.0)
    swarm.lost("h0")
    swarm.join("h0")
    assert swarm.next(1.0) == ()


def test_no_more_than_so_many_go_through_the_control_machine() -> None:
    swarm = swarm_of(9, [MiB] * 9, direct=False)
    swarm.lanes = 6
    started = swarm.next(0.0)
    assert len(started) == 4
    assert all(each.relayed for each in started)


def test_a_host_that_fails_with_everyone_is_given_up() -> None:
    swarm = swarm_of(1, [MiB])
    now = 0.0
    for _ in range(6):
        (transfer,) = swarm.next(now)
        swarm.failed(transfer, now)
        now += 100
    assert swarm.hopeless == ("h0",)


# Whole distributions


@pytest.mark.parametrize(
    ("hosts", "start_s", "verify_s", "expected"),
    [
        (1, 0.0, 0.0, 1.0),
        (8, 0.0, 0.0, 1.1),
        (8, 0.1, 0.1, 1.22),
        (8, 0.3, 0.15, 1.237),
        (64, 0.0, 0.0, 1.333),
    ],
)
def test_thirty_shards_take_little_more_than_the_wires_need(
    hosts: int, start_s: float, verify_s: float, expected: float
) -> None:
    fluid = Fluid(rates(hosts), start_s=start_s, verify_s=verify_s)
    seconds = fluid.run(swarm_of(hosts, SHARDS))
    assert ratio(seconds, SHARDS) == expected
    assert fluid.most_up <= 2
    assert len(fluid.sent) == 30 * hosts


def test_a_slow_host_delays_nobody() -> None:
    alone = Fluid(rates(7), start_s=0.1)
    alone.run(swarm_of(7, SHARDS))
    fluid = Fluid(rates(8, h7=LINE / 10), start_s=0.1)
    fluid.run(swarm_of(8, SHARDS))
    assert max(fluid.finished[f"h{n}"] for n in range(7)) <= 1.1 * max(alone.finished.values())
    assert fluid.finished["h7"] > 700


def test_a_host_that_dies_half_way_delays_nobody() -> None:
    alone = Fluid(rates(7), start_s=0.1)
    alone.run(swarm_of(7, SHARDS))
    fluid = Fluid(rates(8), start_s=0.1, dies={"h7": 40.0})
    fluid.run(swarm_of(8, SHARDS))
    assert "h7" not in fluid.finished
    assert max(fluid.finished[f"h{n}"] for n in range(7)) <= 1.15 * max(alone.finished.values())


def test_a_host_may_join_when_others_are_done_and_gets_it_from_all() -> None:
    swarm = swarm_of(3, SHARDS)
    fluid = Fluid(rates(3, late=4 * LINE))
    seconds = fluid.run(swarm, at=[(200.0, lambda: swarm.join("late"))])
    senders = {each.source for each in fluid.sent if each.target == "late"}
    assert len(senders) == 2
    assert seconds - 200.0 < 0.6 * sum(SHARDS) / LINE


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 64 * MiB), min_size=1, max_size=12),
    there=st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=7),
    speeds=st.lists(st.sampled_from([LINE / 20, LINE, 10 * LINE]), min_size=8, max_size=8),
    direct=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_every_host_gets_every_piece_exactly_once(
    sizes: list[int], there: list[set[int]], speeds: list[float], direct: list[bool]
) -> None:
    swarm = Swarm(pieces(*sizes))
    swarm.join("head", has=range(len(sizes)), receives=False)
    had = {f"h{n}": {p for p in has if p < len(sizes)} for n, has in enumerate(there)}
    for number, (name, has) in enumerate(had.items()):
        swarm.join(name, has=has, direct=direct[number])
    fluid = Fluid(dict(zip(("head", *had), speeds, strict=False)), start_s=0.1, verify_s=0.1)
    fluid.run(swarm)
    assert all(swarm.complete(name) for name in had)
    got = Counter((each.target, each.piece.number) for each in fluid.sent)
    wanted = {(n, p) for n, has in had.items() for p in set(range(len(sizes))) - has}
    assert got == Counter(wanted)
    assert all(each.source != each.target for each in fluid.sent)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), hosts=st.integers(1, 6), count=st.integers(1, 10))
def test_whatever_fails_no_file_has_two_writers_and_no_host_more_than_its_streams(
    data: st.DataObject, hosts: int, count: int
) -> None:
    swarm = swarm_of(hosts, [MiB] * count)
    now, running = 0.0, list[Transfer]()
    for _ in range(400):
        now += 1.0
        running += swarm.next(now)
        writers = Counter((each.target, each.piece.number) for each in running)
        assert max(writers.values(), default=0) <= 1
        for end in ("source", "target"):
            streams = Counter(getattr(each, end) for each in running)
            assert max(streams.values(), default=0) <= 6
        for each in running:
            assert swarm.peers[each.source].has & each.piece.bit
            swarm.heard(each, now)
        if not running:
            if all(swarm.complete(f"h{n}") for n in range(hosts)) or swarm.hopeless:
                return
            continue
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        if data.draw(st.integers(0, 9)) < 2:
            swarm.failed(ended, now)
        else:
            swarm.arrived(ended, now)
    raise AssertionError("it never came to an end")


# Files in ranges


def in_ranges(*sizes: int) -> Swarm:
    return Swarm(with_ranges([Piece(n, size, (f"f{n}",)) for n, size in enumerate(sizes)]))


@pytest.mark.parametrize(
    ("sizes", "as_files"),
    [([960 * MiB], 6.7), ([240 * MiB] * 4, 2.5), (SHARDS, 1.22)],
)
def test_a_model_of_few_files_is_as_quick_as_one_of_many(sizes: list[int], as_files: float) -> None:
    whole = swarm_of(8, sizes)
    seconds = Fluid(rates(8), start_s=0.1, verify_s=0.1).run(whole)
    assert ratio(seconds, sizes) == pytest.approx(as_files, abs=0.02)
    assert ratio(in_conversations(8).run(swarm_in_ranges(8, sizes)), sizes) < 1.07


def test_ranges_to_many_hosts_take_little_more_and_nearly_all_go_on_with_the_last_source() -> None:
    fluid = in_conversations(64)
    assert ratio(fluid.run(swarm_in_ranges(64, SHARDS)), SHARDS) < 1.12
    assert sum(each.goes_on for each in fluid.sent) > 0.95 * len(fluid.sent)
    assert fluid.most_up <= 3


def swarm_in_ranges(hosts: int, sizes: list[int]) -> Swarm:
    swarm = in_ranges(*sizes)
    swarm.join("head", has=range(len(swarm.pieces)), receives=False)
    for number in range(hosts):
        swarm.join(f"h{number}")
    return swarm


def in_conversations(hosts: int) -> Fluid:
    return Fluid(rates(hosts), start_s=0.1, again_s=0.02)


def test_a_file_is_put_together_when_its_last_range_has_come() -> None:
    swarm = in_ranges(20 * MiB)
    swarm.join("head", has=range(3), receives=False)
    swarm.join("h0")
    first, second = swarm.next(0.0)
    swarm.arrived(first, 1.0)
    assert (swarm.all_came(), swarm.complete("h0")) == ((), False)
    swarm.arrived(second, 2.0)
    [(name, file)] = swarm.all_came()
    assert (name, file.number, file.in_ranges) == ("h0", 2, True)
    assert swarm.all_came() == ()
    # Nobody is asked for the file meanwhile, and the last source may go.
    assert swarm.next(2.0) == ()
    swarm.lost("head")
    assert swarm.hopeless == ()
    swarm.put_together(name, file)
    assert swarm.complete("h0")


def test_a_file_that_is_not_what_it_should_be_comes_once_more_as_a_whole() -> None:
    swarm = in_ranges(20 * MiB)
    swarm.join("head", has=range(3), receives=False)
    swarm.join("h0")
    swarm.join("h1")
    while moving := swarm.next(0.0):
        for each in moving:
            swarm.arrived(each, 1.0)
    told = dict(swarm.all_came())
    assert told.keys() == {"h0", "h1"}
    swarm.fell_apart("h0", told["h0"])
    assert swarm.lacking("h0") == 20 * MiB
    [again] = swarm.next(2.0)
    # h1 has it in ranges, but whether they are right is not known yet.
    assert (again.source, again.target, again.piece.number) == ("head", "h0", 2)
    swarm.failed(again, 3.0, bad_source=True)
    assert "h0" in swarm.hopeless
    swarm.put_together("h1", told["h1"])
    assert swarm.hopeless == ()
    [better] = swarm.next(10.0)
    assert (better.source, better.target) == ("h1", "h0")
    swarm.arrived(better, 11.0)
    assert swarm.complete("h0")


def test_what_was_there_before_is_not_asked_for() -> None:
    swarm = in_ranges(20 * MiB, 30 * MiB)
    swarm.join("head", has=range(len(swarm.pieces)), receives=False)
    swarm.join("all ranges", has=(0, 1))
    swarm.join("a part of the file itself", has=(2, 3, 4), whole=(5,))
    assert [(name, file.number) for name, file in swarm.all_came()] == [
        ("all ranges", 5),
        ("a part of the file itself", 6),
    ]
    asked = {
        each.piece.number for each in swarm.next(0.0) if each.target == "a part of the file itself"
    }
    assert asked == {5}
