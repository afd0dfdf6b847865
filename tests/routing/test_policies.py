from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.routing import policies
from vllmdeploy.routing.load import Load, Observed
from vllmdeploy.routing.policies.adaptive import reused_share
from vllmdeploy.routing.policies.prefix_affinity import bound_of
from vllmdeploy.routing.upstream import (
    ANY_REQUEST,
    Address,
    Affinity,
    C,
    Member,
    Request,
    Upstream,
    affinity_of,
)

LONG = "You are a careful assistant. " * 40


def member(id_: str, pending: int = 0, **fields: float) -> Member:
    address = Address(id_, 8000)
    upstream = Upstream(
        id_,
        address,
        weight=fields.get("weight", 1.0),
        cost=fields.get("cost", 1.0),
        limit=int(fields.get("limit", 256)),
    )
    waiting = int(fields.get("waiting", 0))
    load = Load(inflight=pending, pace_s=fields.get("pace", 0.0))
    load.observed = Observed(waiting=waiting)
    return Member(upstream, load)


def ids(members: Sequence[Member]) -> str:
    return " ".join(m.upstream.id for m in members)


def fleet(count: int) -> list[Member]:
    return [member(f"i{n}") for n in range(count)]


def policy(name: str, seed: int = 1) -> policies.Policy:
    return policies.create(name, random.Random(seed).random)


def session(name: str) -> Request:
    return Request(affinity=affinity_of(session=name))


def prompt(text: str) -> Request:
    return Request(affinity=affinity_of(text), prompt_tokens=len(text) // 4)


loads = st.lists(st.integers(0, 50), min_size=1, max_size=12)
requests = st.sampled_from([ANY_REQUEST, session("bob"), prompt("short"), prompt(LONG)])


@pytest.mark.parametrize("name", policies.names())
@settings(max_examples=30)
@given(pending=loads, request_=requests, seed=st.integers(0, 99))
def test_every_policy_orders_all_candidates_and_changes_none(
    name: str, pending: list[int], request_: Request, seed: int
) -> None:
    members = [member(f"i{n}", load) for n, load in enumerate(pending)]
    ordered = policy(name, seed).order(members, request_)
    assert sorted(m.upstream.id for m in ordered) == sorted(m.upstream.id for m in members)
    assert [m.load.inflight for m in members] == pending


@pytest.mark.parametrize("name", sorted({*policies.names()} - {"random", "power_of_two"}))
@settings(max_examples=30)
@given(pending=loads, request_=requests, seed=st.integers(0, 99))
def test_first_is_the_first_of_the_order_where_chance_has_no_say(
    name: str, pending: list[int], request_: Request, seed: int
) -> None:
    members = [member(f"i{n}", load) for n, load in enumerate(pending)]
    chosen = policies.chooser(policy(name, seed))(members, request_)
    assert chosen is policy(name, seed).order(members, request_)[0]


@pytest.mark.parametrize("name", policies.names())
def test_nobody_to_order_is_no_order(name: str) -> None:
    assert list(policy(name).order([], prompt(LONG))) == []


@given(st.integers(1, 12), st.integers(1, 20))
def test_round_robin_gives_each_exactly_its_turn(count: int, rounds: int) -> None:
    choose = policies.chooser(policy("round_robin"))
    members = fleet(count)
    chosen = Counter(choose(members, ANY_REQUEST).upstream.id for _ in range(count * rounds))
    assert set(chosen.values()) == {rounds}


def test_round_robin_stays_fair_when_one_leaves_for_a_while() -> None:
    choose = policies.chooser(policy("round_robin"))
    members = fleet(3)
    for _ in range(3):
        choose(members, ANY_REQUEST)
    assert [choose(members[1:], ANY_REQUEST).upstream.id for _ in range(4)] == ["i1", "i2"] * 2
    assert choose(members, ANY_REQUEST).upstream.id == "i0"


def test_round_robin_forgets_who_is_long_gone() -> None:
    turns = policies.chooser(policy("round_robin"))
    for n in range(1000):
        turns([member(f"gone{n}")], ANY_REQUEST)
    members = fleet(2)
    assert [turns(members, ANY_REQUEST).upstream.id for _ in range(4)] == ["i0", "i1"] * 2


def test_random_reaches_everybody_about_equally() -> None:
    choose = policies.chooser(policy("random"))
    members = fleet(4)
    chosen = Counter(choose(members, ANY_REQUEST).upstream.id for _ in range(4000))
    assert all(850 < n < 1150 for n in chosen.values())


@given(loads, st.integers(0, 99))
def test_least_inflight_takes_a_least_loaded_one(pending: list[int], seed: int) -> None:
    members = [member(f"i{n}", load) for n, load in enumerate(pending)]
    chosen = policies.chooser(policy("least_inflight", seed))(members, ANY_REQUEST)
    assert chosen.load.pending == min(pending)


def test_equals_share_instead_of_the_first_in_the_list_taking_all() -> None:
    choose = policies.chooser(policy("load_balanced"))
    members = [member("a", 3), member("b", 3), member("c", 9)]
    chosen = Counter(choose(members, ANY_REQUEST).upstream.id for _ in range(1000))
    assert 400 < chosen["a"] < 600
    assert chosen["c"] == 0


@given(loads, st.integers(0, 99))
def test_power_of_two_never_takes_the_single_worst_of_several(
    pending: list[int], seed: int
) -> None:
    members = [member(f"i{n}", load) for n, load in enumerate(pending)]
    worst = max(pending)
    if len(pending) < 2 or pending.count(worst) > 1:
        return
    power = policy("power_of_two", seed)
    assert policies.chooser(power)(members, ANY_REQUEST).load.pending < worst
    assert power.order(members, ANY_REQUEST)[0].load.pending < worst


@pytest.mark.parametrize("name", policies.names())
def test_the_only_candidate_is_chosen(name: str) -> None:
    only = member("only", 7)
    assert policies.chooser(policy(name))([only], prompt(LONG)) is only


@given(st.integers(2, 16), st.data())
def test_consistent_hash_moves_the_keys_of_the_one_that_left_and_no_others(
    count: int, data: st.DataObject
) -> None:
    members = fleet(count)
    gone = data.draw(st.integers(0, count - 1))
    choose = policies.chooser(policy("consistent_hash"))
    left = members[:gone] + members[gone + 1 :]
    for n in range(50):
        before = choose(members, session(f"user-{n}"))
        after = choose(left, session(f"user-{n}"))
        assert after is before or before is members[gone]


@pytest.mark.parametrize("count", [2, 4, 8, 64])
def test_consistent_hash_spreads_sessions_evenly(count: int) -> None:
    choose = policies.chooser(policy("consistent_hash"))
    members = fleet(count)
    chosen = Counter(choose(members, session(f"user-{n}")).upstream.id for n in range(count * 1000))
    assert len(chosen) == count
    assert all(850 < n < 1150 for n in chosen.values())


def test_consistent_hash_without_a_session_uses_the_prompt_then_the_load() -> None:
    choose = policies.chooser(policy("consistent_hash"))
    members = [member("a", 5), member("b", 0), member("c", 9)]
    assert len({choose(members, prompt(LONG + str(n))).upstream.id for n in range(9)}) == 1
    assert choose(members, ANY_REQUEST).upstream.id == "b"


@given(loads, st.text(min_size=1, max_size=600))
def test_prefix_affinity_never_goes_over_its_bound(pending: list[int], text: str) -> None:
    members = [member(f"i{n}", load) for n, load in enumerate(pending)]
    chosen = policies.chooser(policy("prefix_affinity"))(members, prompt(text))
    assert chosen.load.pending < bound_of(members)
    assert chosen.load.pending <= 1.25 * (sum(pending) + 1) / len(pending)


def test_prefix_affinity_keeps_a_conversation_in_its_place_until_that_is_full() -> None:
    choose = policies.chooser(policy("prefix_affinity"))
    members = fleet(4)
    home = choose(members, prompt(LONG))
    assert choose(members, prompt(LONG + "and then?" * 50)) is home
    home.load.inflight = 8
    spill = choose(members, prompt(LONG))
    assert spill is not home
    assert spill is choose(members, prompt(LONG)), "the second place is fixed as well"
    home.load.inflight = 0
    assert choose(members, prompt(LONG)) is home


def test_two_gateways_agree_on_the_place_of_a_prompt() -> None:
    one, two = (policies.chooser(policy("prefix_affinity", seed)) for seed in (1, 2))
    there = list(reversed(fleet(8)))
    for n in range(100):
        asked = prompt(f"{n} {LONG}")
        assert one(fleet(8), asked).upstream.id == two(there, asked).upstream.id


def test_prefix_affinity_without_a_prompt_uses_the_session_then_the_load() -> None:
    choose = policies.chooser(policy("prefix_affinity"))
    members = fleet(4)
    assert len({choose(members, session("bob")).upstream.id for _ in range(9)}) == 1
    members[2].load.inflight = -1
    assert choose(members, ANY_REQUEST) is members[2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_weighted_is_exactly_in_proportion_after_each_round(weights: list[int]) -> None:
    choose = policies.chooser(policy("weighted"))
    members = [member(f"i{n}", weight=float(w)) for n, w in enumerate(weights)]
    chosen = Counter(choose(members, ANY_REQUEST).upstream.id for _ in range(3 * sum(weights)))
    assert [chosen[m.upstream.id] for m in members] == [3 * w for w in weights]


def test_weighted_spreads_the_heavy_one_over_the_round() -> None:
    choose = policies.chooser(policy("weighted"))
    members = [member("a", weight=4.0), member("b", weight=1.0), member("c", weight=1.0)]
    turns = "".join(choose(members, ANY_REQUEST).upstream.id for _ in range(6))
    assert turns == "aabaca"


def test_weighted_forgets_who_is_long_gone() -> None:
    choose = policies.chooser(policy("weighted"))
    for n in range(500):
        choose([member(f"gone{n}"), member("stays")], ANY_REQUEST)
    chosen = Counter(choose(fleet(2), ANY_REQUEST).upstream.id for _ in range(10))
    assert chosen == {"i0": 5, "i1": 5}


@pytest.mark.parametrize(
    ("members", "order"),
    [
        ([member("dear", 0, cost=3.0), member("cheap", 9)], "cheap dear"),
        ([member("slow", cost=1.0, pace=0.09), member("fast", cost=2.0, pace=0.03)], "fast slow"),
        ([member("full", 6, limit=8), member("dear", 5, cost=3.0, limit=8)], "dear full"),
        ([member("queues", 2, waiting=1), member("dear", 7, cost=3.0)], "dear queues"),
        ([member("fuller", 9, limit=8), member("full", 8, cost=9.0, limit=8)], "full fuller"),
        ([member("new", cost=1.0), member("known", cost=1.5, pace=0.02)], "new known"),
    ],
)
def test_cost_optimized_takes_the_cheapest_token_that_has_room(
    members: list[Member], order: str
) -> None:
    assert ids(policy("cost_optimized").order(members, ANY_REQUEST)) == order


@pytest.mark.parametrize(
    ("members", "order"),
    [
        ([member("busy", 9), member("idle", 0)], "idle busy"),
        ([member("slow", 4, pace=0.09), member("fast", 6, pace=0.03)], "fast slow"),
        ([member("unknown", 0), member("slow", 0, pace=0.9), member("fast", 0, pace=0.1)],
         "fast unknown slow"),
    ],
)  # fmt: skip
def test_adaptive_weighs_load_by_speed(members: list[Member], order: str) -> None:
    assert ids(policy("adaptive").order(members, ANY_REQUEST)) == order


def test_adaptive_goes_where_the_prompt_is_cached_unless_that_is_far_busier() -> None:
    asked = prompt(LONG)
    warm, cold = member("warm", 3), member("cold", 1)
    warm.load.begin(asked.affinity.prefixes)
    choose = policies.chooser(policy("adaptive"))
    assert choose([cold, warm], asked) is warm
    warm.load.inflight = 12
    assert choose([cold, warm], asked) is cold


def test_the_reused_share_is_that_of_the_longest_known_prefix() -> None:
    asked = Request(affinity=Affinity(prefixes=(11, 22, 33)), prompt_tokens=256)
    assert reused_share({11: None, 22: None}, asked) == 0.25
    assert reused_share({33: None}, asked) == 0.5
    assert reused_share({99: None}, asked) == 0.0


class Reversed:
    """A user's own policy: `order` and nothing else."""

    def __init__(self, chance: policies.Chance) -> None:
        self._chance = chance

    def order(self, candidates: Sequence[C], request: Request) -> Sequence[C]:
        return list(reversed(candidates))


def test_a_policy_with_nothing_but_an_order_can_be_asked_for_its_first() -> None:
    members = fleet(3)
    own = Reversed(itertools.repeat(0.5).__next__)
    assert policies.chooser(own)(members, ANY_REQUEST) is members[2]
