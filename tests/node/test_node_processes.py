from __future__ import annotations

import os

import pytest

from vllmdeploy.node.processes import Process, members, parse_stat, process


@pytest.mark.parametrize("name", ["python3", "a b", "x) S 1 (y", "", "ray::IDLE"])
def test_a_stat_line_is_read_whatever_the_program_calls_itself(name: str) -> None:
    rest = " ".join(str(number) for number in range(5, 53))
    found = parse_stat(f"42 ({name}) S 1 2 3 {rest}")
    assert found == Process(pid=42, parent=1, session=3, state="S", started=20)


@pytest.mark.parametrize("text", ["", "42", "x (y) S 1 2 3", "42 (y) S 1 2"])
def test_half_a_stat_line_is_nothing(text: str) -> None:
    assert parse_stat(text) is None


def test_our_own_line_is_true() -> None:
    own = process(os.getpid())
    assert own is not None
    assert (own.pid, own.parent, own.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert process(2**22 + 1) is None


# pid: (parent, session). The warden is 1; ray leads 10, an engine leads 20.
TABLE = {
    pid: Process(pid=pid, parent=parent, session=session, state="S", started=1)
    for pid, (parent, session) in {
        1: (0, 1),
        10: (1, 10),  # ray start
        11: (10, 10),  # raylet
        12: (11, 12),  # a Ray worker in a session of its own
        13: (1, 10),  # double-forked, same session
        14: (1, 14),  # double-forked into its own session
        20: (1, 20),  # the engine
        21: (20, 20),
        22: (1, 20),  # the engine's orphan
        30: (0, 30),  # a shell somebody opened in the container
        31: (30, 30),
    }.items()
}


def owned(leader: int, other: int, *claimed: int) -> set[int]:
    return set(
        members(TABLE, warden=1, leader=leader, others=(other,), claims=lambda pid: pid in claimed)
    )


def test_a_child_owns_what_is_below_it_in_its_session_or_claimed() -> None:
    assert owned(10, 20, 14) == {10, 11, 12, 13, 14}
    assert owned(20, 10) == {20, 21, 22}


def test_another_childs_processes_cannot_be_claimed() -> None:
    assert owned(10, 20, *TABLE) == {10, 11, 12, 13, 14}


def test_what_was_not_started_by_the_warden_is_never_touched() -> None:
    assert not {1, 30, 31} & owned(10, 20, *TABLE)


def test_a_loop_of_parents_ends() -> None:
    loop = {
        pid: Process(pid=pid, parent=other, session=pid, state="S", started=1)
        for pid, other in ((5, 6), (6, 5))
    }
    assert members(loop, warden=1, leader=5, others=(), claims=lambda _: True) == ()
