"""A fleet of three loses a part at a time, and comes back: by itself, or by `up`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.rig.host import Host
from tests.rig.operate import JOIN_LIMIT_S, Operator, node, operator
from tests.rig.programs import until
from tests.rig.rig import Rig


@dataclass(frozen=True, slots=True)
class Grown:
    """A fleet that was up on two hosts before a third came into the list."""

    operator: Operator
    ids_of_two: dict[str, str]

    @property
    def rig(self) -> Rig:
        return self.operator.rig


@pytest.fixture(scope="module")
def grown(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    made = operator(rig, tmp_path_factory.mktemp("operator"), rig.head, rig["sudoer"])
    made.up()
    ids = made.ids()
    made.writes(rig.head, rig["sudoer"], rig["bare"])
    made.up()
    return Grown(made, ids)


@pytest.fixture
def whole(grown: Grown) -> Operator:
    """Each test gets a fleet that is whole; `up` mends what one that failed has left."""
    if not grown.operator.is_whole():
        grown.operator.up()
        grown.operator.becomes_whole()
    return grown.operator


def test_a_host_that_is_added_joins_and_the_others_stay_as_they_are(grown: Grown) -> None:
    grown.operator.becomes_whole()
    added = {"bare/vllm-ray-worker": node(grown.rig["bare"]).id}
    assert grown.operator.ids() == grown.ids_of_two | added
    assert set(grown.ids_of_two) == {"head/vllm-ray-head", "sudoer/vllm-ray-worker"}


def _kill_pid_1(fleet: Operator, host: Host) -> str:
    """Kill a node's first process from outside; returns the Ray node that went with it."""
    before, raylet = node(host), fleet.raylet(host)
    host.sh('kill -KILL "$1"', str(before.pid))
    until(
        f"{host.name}: Docker started it again",
        lambda: node(host).restarts == before.restarts + 1 and node(host).running,
        limit_s=JOIN_LIMIT_S,
    )
    assert node(host).id == before.id
    return raylet


def test_a_node_whose_pid_1_was_killed_comes_back_by_itself(whole: Operator) -> None:
    host = whole.rig["sudoer"]
    whole.gets_back(host, _kill_pid_1(whole, host))
    assert "nothing to do" in whole.up().stderr


@pytest.mark.long
def test_a_head_whose_pid_1_was_killed_gets_its_workers_back_by_itself(whole: Operator) -> None:
    head = whole.rig.head
    whole.gets_back(head, _kill_pid_1(whole, head))
    assert "nothing to do" in whole.up().stderr


def test_status_names_a_node_that_was_stopped_by_hand_and_up_brings_it_back(
    whole: Operator,
) -> None:
    host = whole.rig["bare"]
    before, raylet = whole.ids(), whole.raylet(host)
    host.sh("docker kill vllm-ray-worker")
    found = whole.status()
    assert {name: row["state"] for name, row in found.items() if name != "bare"} == {
        "head": "ready",
        "sudoer": "ready",
    }
    assert found["bare"]["state"] == "stopped"
    assert found["bare"]["why"] == "it is exited (137); `vllmdeploy up` starts it"
    whole.up()
    whole.gets_back(host, raylet)
    assert whole.ids() == before


def test_a_worker_that_was_rebooted_is_back_without_a_person(whole: Operator) -> None:
    host = whole.rig["sudoer"]
    before, raylet = whole.ids(), whole.raylet(host)
    host.reboot()
    whole.gets_back(host, raylet)
    assert whole.ids() == before


@pytest.mark.long
def test_a_head_that_was_rebooted_has_its_workers_back_without_a_person(whole: Operator) -> None:
    head = whole.rig.head
    before, raylet = whole.ids(), whole.raylet(head)
    head.reboot()
    whole.gets_back(head, raylet)
    assert whole.ids() == before


def test_up_mends_a_cluster_whose_head_was_stopped_by_hand(whole: Operator) -> None:
    head = whole.rig.head
    before, raylet = whole.ids(), whole.raylet(head)
    head.sh("docker kill vllm-ray-head")
    found = whole.status()["head"]
    assert (found["state"], found["why"]) == (
        "stopped",
        "it is exited (137); `vllmdeploy up` starts it",
    )
    whole.up()
    whole.gets_back(head, raylet)
    assert whole.ids() == before
