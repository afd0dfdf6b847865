"""One engine on several hosts without Ray: its ranks begin together, end together, begin anew."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable

import pytest

from tests.node.wardens import Node, alive
from tests.rig.programs import until
from vllmdeploy.node.ranks import (
    JOIN_S,
    SILENT_S,
    Heard,
    Rank,
    Ranks,
    Run,
    first_lacks,
    joined,
    other_lacks,
    others_failed,
    read_rank,
)
from vllmdeploy.node.spec import BadSpec, parse_engine

HOSTS = (("one", "127.0.0.1"), ("two", "127.0.0.1"))
RANKS = Ranks(index=0, hosts=HOSTS, port=8102, generation="1")
RUN = Run(name="r1", since=0.0)
WAITING = Rank(state="waiting", reason="rank 0 on one is waiting")


def lacks(rank: Rank, run: Run = RUN, *, now: float = 1.0, at: float = 1.0) -> str:
    return first_lacks(RANKS, run, {1: Heard(rank, at)}, now)


def test_the_first_rank_begins_when_all_others_wait_for_it() -> None:
    down = Run()
    assert first_lacks(RANKS, down, {}, 0.0) == "waiting for rank 1 on two: its warden is not heard"
    assert lacks(WAITING, down) == ""
    ended = Rank(state="backing-off", reason="exited with code 1", failures=1)
    assert lacks(ended, down) == "rank 1 on two is backing-off (exited with code 1)"
    assert lacks(Rank(state="running", run="older"), down) == "rank 1 on two is running"


def test_a_rank_that_was_in_and_is_not_any_more_ends_the_first() -> None:
    inside = joined(RUN, {1: Heard(Rank(state="running", run="r1"), 1.0)})
    assert inside.joined == {1}
    assert lacks(Rank(state="running", run="r1"), inside) == ""
    ended = Rank(state="clearing", reason="killed by signal 9")
    assert lacks(ended, inside) == "rank 1 on two ended: clearing (killed by signal 9)"


def test_a_rank_that_comes_late_is_waited_for_and_one_that_does_not_come_is_not() -> None:
    assert lacks(WAITING) == ""
    assert lacks(WAITING, now=JOIN_S + 1, at=JOIN_S) == "rank 1 on two did not start within 60 s"
    failed = Rank(state="backing-off", reason="exited with code 1", failures=1)
    assert lacks(failed) == "rank 1 on two is backing-off (exited with code 1)"


def test_a_host_that_is_silent_has_no_rank() -> None:
    inside = Run(name="r1", joined=frozenset({1}))
    silent = SILENT_S + 1.5
    assert lacks(Rank(state="running", run="r1"), inside, now=silent) == (
        "waiting for rank 1 on two: its warden is not heard"
    )


def test_another_rank_follows_the_first_into_each_of_its_runs() -> None:
    mine = Ranks(index=1, hosts=HOSTS, port=8102, generation="1")
    up = Heard(Rank(state="starting", run="r1"), 1.0)
    assert other_lacks(mine, None, "", 1.0).startswith("waiting for rank 0 on one")
    assert other_lacks(mine, up, "", 1.0) == ""
    assert other_lacks(mine, up, "r1", 1.0) == ""
    assert other_lacks(mine, up, "r0", 1.0) == "rank 0 on one began anew"
    down = Heard(Rank(state="backing-off", reason="exit"), 1.0)
    assert other_lacks(mine, down, "r1", 1.0) == "rank 0 on one is backing-off (exit)"
    assert "not heard" in other_lacks(mine, up, "r1", 2.0 + SILENT_S)


def test_who_failed_first_is_to_blame() -> None:
    alone = {1: Heard(Rank(state="running", run="r1"), 1.0)}
    assert others_failed(RANKS, alone, 1.0) == ""
    told = {1: Heard(Rank(state="clearing", reason="rank 0 on one is clearing"), 1.0)}
    assert others_failed(RANKS, told, 1.0) == ""
    dead = {1: Heard(Rank(state="clearing", reason="exited with code 1", failed=True), 1.0)}
    assert others_failed(RANKS, dead, 1.0) == "rank 1 on two ended: clearing (exited with code 1)"
    assert "not heard" in others_failed(RANKS, {}, 1.0)


def test_what_a_rank_says_of_itself_survives_the_way() -> None:
    said = Rank(state="running", reason="x", run="r1", failures=2, exit_code=1, lines=("a", "b"))
    assert read_rank(said.document()) == said
    for wrong in ({}, {**said.document(), "failures": None}, {**said.document(), "failures": "x"}):
        with pytest.raises(ValueError, match=r"rank|invalid literal"):
            read_rank(wrong)


@pytest.mark.parametrize(
    "ranks",
    [
        "[]",
        '{"index": 0, "hosts": [["a", "b"]], "port": 1, "generation": "1"}',
        '{"index": 2, "hosts": [["a", "b"], ["c", "d"]], "port": 1, "generation": "1"}',
        '{"index": 0, "hosts": [["a"], ["c", "d"]], "port": 1, "generation": "1"}',
        '{"index": true, "hosts": [["a", "b"], ["c", "d"]], "port": 1, "generation": "1"}',
        '{"index": 0, "hosts": [["a", "b"], ["c", "d"]], "port": 70000, "generation": "1"}',
    ],
)
def test_a_place_among_ranks_that_cannot_be_is_refused(ranks: str) -> None:
    with pytest.raises(BadSpec, match="ranks"):
        parse_engine('{"name": "m", "argv": ["x"], "ranks": %s}' % ranks)  # noqa: UP031


@pytest.fixture
def port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


@pytest.fixture
def pair(make_node: Callable[[str], Node], port: int) -> tuple[Node, Node]:
    """Two wardens without Ray, each with its rank of one engine."""
    nodes = (make_node("one"), make_node("two"))
    for index, node in enumerate(nodes):
        place(node, index, port)
        node.start("--role", "worker" if index else "head", child=())
    return nodes


def place(node: Node, index: int, port: int, generation: str = "1") -> None:
    node.spec(
        "m",
        argv=[sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1000)"],
        ranks={"index": index, "hosts": HOSTS, "port": port, "generation": generation},
    )


def pids(pair: tuple[Node, Node]) -> tuple[int, int]:
    one, two = (node.child("running", "m")["pid"] for node in pair)
    return one, two


def anew(pair: tuple[Node, Node], before: tuple[int, int]) -> bool:
    now = [node.ask("status")["engines"]["m"] for node in pair]
    return all(
        one["state"] == "running" and one["pid"] not in (None, old)
        for one, old in zip(now, before, strict=True)
    )


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_takes_all_down_and_all_come_back(
    pair: tuple[Node, Node], killed: int
) -> None:
    before = pids(pair)
    until("both ranks are known", lambda: pair[0].ask("status")["engines"]["m"]["ranks"])
    os.kill(before[killed], signal.SIGKILL)
    until("both ranks are new", lambda: anew(pair, before))
    assert not any(map(alive, before))
    counts = [node.ask("status")["engines"]["m"]["failures"] for node in pair]
    # Only the one that failed has it counted: the other died because its need did.
    assert counts == [1 - killed, killed]


def test_a_node_without_ray_runs_its_engine_while_the_other_host_is_there(
    pair: tuple[Node, Node],
) -> None:
    one, two = pair
    before = pids(pair)
    status = one.ask("status")
    assert (status["ray"], status["state"]) == (None, "running")
    assert one.ask("nodes")["nodes"] == []
    assert two.end() == 0
    waiting = one.child("waiting", "m")
    assert waiting["reason"].startswith(("rank 1 on two", "waiting for rank 1 on two"))
    assert waiting["failures"] == 0
    assert not any(map(alive, before))
    two.start("--role", "worker", child=())
    pids(pair)


def test_a_rank_of_another_generation_has_no_part_in_it(pair: tuple[Node, Node], port: int) -> None:
    one, two = pair
    before = pids(pair)
    place(one, 0, port, generation="2")
    words = "waiting for rank 1 on two: its warden is not heard"
    one.reaches(lambda status: status["engines"]["m"]["reason"] == words)
    until("the old rank is gone", lambda: not alive(before[1]))
    place(two, 1, port, generation="2")
    assert set(pids(pair)).isdisjoint(before)


def test_what_is_no_rank_is_turned_away(pair: tuple[Node, Node], port: int) -> None:
    before = pids(pair)
    for said in (
        b"\n",
        b"[]\n",
        b'{"service": "m", "generation": "1", "index": 0}\n',
        b"{" * 99999,
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
            caller.sendall(said)
            caller.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert caller.recv(1000) == b""
    assert pids(pair) == before
