"""Which card is whose, and what is left for Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import bare, cards, instance
from vllmdeploy.core.card import Card, CardProcess, CardReport
from vllmdeploy.core.spec import CARDS_LABEL, CLUSTER_LABEL, ROLE_LABEL, SERVICE_LABEL
from vllmdeploy.plan.cards import ledger, share_for_ray
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.tools.docker import Container

NONE: list[int] = []


def ray(*held: int, cluster: str = "vllm", state: str = "running") -> Container:
    return Container(
        id="r",
        name=f"{cluster}-ray-head",
        image="i",
        image_id="i",
        state=state,
        labels={
            CLUSTER_LABEL: cluster,
            ROLE_LABEL: "ray-head",
            CARDS_LABEL: ",".join(map(str, held)),
        },
    )


def serving(name: str, service: str, *held: int) -> Container:
    one = instance(name, *held)
    return replace(one, labels={**one.labels, SERVICE_LABEL: service})


def host(*containers: Container, count: int = 4, **changes: Any) -> FoundHost:
    found = bare("a", "10.0.0.1", head=True, cards=cards(count), **changes)
    return replace(found, containers=containers)


def shared(found: FoundHost) -> tuple[list[int], int, bool]:
    share = share_for_ray(found, "vllm")
    return [card.index for card in share.cards], share.declared, share.all_of_them


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(host(), ([0, 1, 2, 3], 4, True), id="all"),
        pytest.param(host(gpus=(1, 3)), ([1, 3], 2, False), id="gpus="),
        pytest.param(host(ray_gpus=2), ([0, 1], 2, False), id="ray_gpus="),
        pytest.param(host(ray_gpus=0), (NONE, 0, False), id="none for Ray"),
        pytest.param(host(instance("x", 1, 2)), ([0, 3], 2, False), id="held by an instance"),
        pytest.param(host(ray(0, 1)), ([0, 1, 2, 3], 4, True), id="this Ray keeps what it holds"),
        pytest.param(
            host(promised={3: "m-1"}), ([0, 1, 2], 3, False), id="of an instance that is to be back"
        ),
        pytest.param(
            host(ray(2, 3), promised={3: "m-1"}), ([0, 1, 2], 3, False), id="an instance goes first"
        ),
        pytest.param(host(ray(0, cluster="other")), ([1, 2, 3], 3, False), id="another cluster's"),
        pytest.param(
            host(ray(0, cluster="other", state="exited")), ([0, 1, 2, 3], 4, True), id="stopped"
        ),
        pytest.param(
            host(ray(0, 1, state="exited"), instance("x", 1)),
            ([0, 2, 3], 3, False),
            id="Ray is down and an instance took a card of its",
        ),
        pytest.param(
            host(ray(0, 1), instance("x", 1)), ([0, 2, 3], 3, False), id="both claim a card"
        ),
        pytest.param(host(count=0), (NONE, 0, True), id="no card"),
    ],
)
def test_ray_gets_what_nobody_else_has(
    found: FoundHost, expected: tuple[list[int], int, bool]
) -> None:
    assert shared(found) == expected


def test_a_node_outside_docker_holds_its_cards_too() -> None:
    node = FoundNode(
        name="x", id="x", role="ray-head", group="g", running=True, cluster="other", cards=(0,)
    )
    found = replace(host(), supervised=(node,))
    assert shared(found) == ([1, 2, 3], 3, False)
    mine = replace(node, cluster="vllm")
    assert shared(replace(found, supervised=(mine,))) == ([0, 1, 2, 3], 4, True)
    stopped = replace(node, running=False)
    assert shared(replace(found, supervised=(stopped,))) == ([0, 1, 2, 3], 4, True)


def test_a_host_without_cards_declares_what_its_line_says() -> None:
    found = replace(bare("a", "1", head=True, ray_gpus=1), cards=CardReport(vendor="cpu"))
    assert shared(found) == ([], 1, True)


def test_what_is_left_out_and_why_is_said() -> None:
    report = CardReport(
        vendor="nvidia",
        cards=(
            Card(index=0, problem="fell off the bus"),
            Card(index=1),
            Card(index=2, processes=(CardProcess(pid=7, name="python"), CardProcess(pid=8))),
            Card(index=3),
        ),
    )
    found = replace(host(serving("vllm-instance-a-1", "chat", 3)), cards=report)
    share = share_for_ray(found, "vllm")
    assert share.notes == (
        "a: card 0 left out: fell off the bus",
        "a: card 2 is in use by python (pid 7), process (pid 8)",
        "a: card 3 left out: held by vllm-instance-a-1 (chat)",
    )
    assert [(one.card.index, one.holder, one.ours, one.usable) for one in ledger(found)] == [
        (0, "", False, False),
        (1, "", False, True),
        (2, "python (pid 7), process (pid 8)", False, True),
        (3, "vllm-instance-a-1 (chat)", True, True),
    ]


def test_more_than_there_is_is_a_problem() -> None:
    assert share_for_ray(host(ray_gpus=9), "vllm").problems == (
        "a: ray_gpus=9, but 4 cards are free",
    )
    assert share_for_ray(host(gpus=(0, 8, 9), count=1), "vllm").problems == (
        "a: gpus= names card 8,9, which is not there (it has 0)",
    )
    assert share_for_ray(host(gpus=(0,), count=0), "vllm").problems == (
        "a: gpus= names card 0, which is not there (it has none)",
    )


def test_an_instance_outside_any_container_holds_its_cards_too() -> None:
    node = FoundNode(
        name="vllm-instance-m-1",
        id="x",
        role="instance",
        group="default",
        running=True,
        cluster="vllm",
        cards=(1,),
    )
    found = replace(host(), supervised=(node,))
    assert [one.holder for one in ledger(found)] == ["", "vllm-instance-m-1", "", ""]
    cards, declared, _ = shared(found)
    assert (cards, declared) == ([0, 2, 3], 3)
