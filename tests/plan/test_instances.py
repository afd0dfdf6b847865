from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.card import Card
from vllmdeploy.plan.cards import Entry
from vllmdeploy.plan.instances import Placement, Ports, Room, Shape, place

USUAL = Ports(usual=(8001, 8002, 8003, 8004, *range(8100, 8200)))


def room(host: str = "gpu-01", count: int = 8, **held: str) -> Room:
    """`held`: who has a card, `c0="Ray"`."""
    cards = tuple(
        Entry(card=Card(index=index), holder=held.get(f"c{index}", "")) for index in range(count)
    )
    return Room(host=host, cards=cards)


def shown(placement: Placement) -> str:
    return "\n".join(map(str, (*placement.slots, *placement.notes, *placement.reasons)))


def test_seed_003_four_instances_take_two_cards_each_in_order() -> None:
    assert shown(place(Shape(count=4, cards_each=2), [room()], USUAL)) == (
        "instance 1: gpu-01, cards 0,1, port 8001\n"
        "instance 2: gpu-01, cards 2,3, port 8002\n"
        "instance 3: gpu-01, cards 4,5, port 8003\n"
        "instance 4: gpu-01, cards 6,7, port 8004"
    )


def test_seed_004_without_a_number_every_card_of_every_host_gets_an_instance() -> None:
    rooms = [room("a", 2), room("b", 3)]
    assert shown(place(Shape(), rooms, USUAL)) == (
        "instance 1: a, card 0, port 8001\n"
        "instance 2: b, card 0, port 8001\n"
        "instance 3: a, card 1, port 8002\n"
        "instance 4: b, card 1, port 8002\n"
        "instance 5: b, card 2, port 8003"
    )


def test_cards_that_somebody_has_are_never_used() -> None:
    rooms = [room(count=4, c0="Ray", c2="python (pid 77)")]
    assert [one.cards for one in place(Shape(), rooms, USUAL).slots] == [(1,), (3,)]


def test_more_instances_than_cards_says_the_arithmetic_and_who_has_them() -> None:
    rooms = [room("a", 4, c0="Ray", c1="python (pid 77)"), room("b", 1)]
    assert shown(place(Shape(count=3, cards_each=2), rooms, USUAL)) == (
        "3 instances of 2 cards each need 6 free cards; there is room for 1"
        " (a: 2 of 4 free (card 0: Ray, card 1: python (pid 77)); b: 1 of 1 free)"
    )


def test_none_fits_where_nothing_is_free_and_no_number_was_said() -> None:
    assert shown(place(Shape(), [room(count=1, c0="Ray")], USUAL)) == (
        "1 instance of 1 card each needs 1 free cards; there is room for 0"
        " (gpu-01: 0 of 1 free (card 0: Ray))"
    )


def test_workers_share_a_card_before_the_next_is_begun() -> None:
    assert shown(place(Shape(per_card=2), [room(count=2)], USUAL)) == (
        "instance 1: gpu-01, card 0, port 8001, one of 2 on it\n"
        "instance 2: gpu-01, card 0, port 8002, one of 2 on it\n"
        "instance 3: gpu-01, card 1, port 8003, one of 2 on it\n"
        "instance 4: gpu-01, card 1, port 8004, one of 2 on it"
    )


def test_a_host_without_cards_takes_as_many_as_are_asked_for() -> None:
    assert shown(place(Shape(count=2), [Room(host="cpu", cardless=True)], USUAL)) == (
        "instance 1: cpu, processors, port 8001\ninstance 2: cpu, processors, port 8002"
    )


def test_a_named_port_that_a_stranger_has_is_refused_with_its_pid() -> None:
    taken = Room(host="a", cardless=True, taken_ports={8002: "port 8002 is taken by nginx (pid 5)"})
    assert shown(place(Shape(count=2), [taken], Ports(asked=(8001, 8002)))) == (
        "a: port 8002 is taken by nginx (pid 5)"
    )


def test_usual_ports_that_are_taken_are_passed_over_and_said() -> None:
    taken = Room(
        host="a",
        cardless=True,
        taken_ports={8001: "port 8001 is taken by nginx (pid 5)", 8004: "far away"},
    )
    assert shown(place(Shape(count=2), [taken], USUAL)) == (
        "instance 1: a, processors, port 8002\n"
        "instance 2: a, processors, port 8003\n"
        "a: port 8001 is taken by nginx (pid 5)"
    )


def test_fewer_ports_than_instances_says_both_numbers() -> None:
    assert shown(place(Shape(count=3), [room()], Ports(asked=(8001, 8002)))) == (
        "gpu-01: 3 instances need 3 ports, 2 are given"
    )


def test_numbers_that_exist_already_are_not_given_again() -> None:
    placement = place(Shape(count=2), [room()], USUAL, numbers=(1, 3))
    assert [one.number for one in placement.slots] == [2, 4]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    held=st.sets(st.integers(0, 8)),
    each=st.integers(1, 4),
    per_card=st.integers(1, 3),
    count=st.none() | st.integers(1, 12),
)
def test_no_card_is_given_twice_and_no_port_of_a_host(
    sizes: list[int], held: set[int], each: int, per_card: int, count: int | None
) -> None:
    holders = {f"c{index}": "somebody" for index in held}
    rooms = [room(f"h{number}", size, **holders) for number, size in enumerate(sizes)]
    placement = place(Shape(count=count, cards_each=each, per_card=per_card), rooms, USUAL)
    assert bool(placement.slots) != bool(placement.reasons)
    users: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for slot in placement.slots:
        assert len(slot.cards) == each
        assert not held & set(slot.cards)
        for card in slot.cards:
            users.setdefault((slot.host, card), set()).add(slot.cards)
    assert all(len(sets) == 1 for sets in users.values())
    places = [(slot.host, slot.port) for slot in placement.slots]
    assert len(set(places)) == len(places)
    for slot in placement.slots:
        same = [one for one in placement.slots if (one.host, one.cards) == (slot.host, slot.cards)]
        assert len(same) == slot.sharing <= per_card
