"""The steps of instances: in which order they start, and what is left when one does not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.plan.builders import bare, cards, lines, wanted
from tests.plan.instance_builders import asked, decide, fleet, kept, sites
from vllmdeploy.core.command import Result
from vllmdeploy.core.plan import Plan, Wait
from vllmdeploy.errors import NotHealthy
from vllmdeploy.plan import instances_steps as steps
from vllmdeploy.plan.instances_decide import Instances
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.plan.instances_steps import Sites
from vllmdeploy.plan.instances_wanted import FoundInstances
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.tools.vllm_engine import EngineState

AWAITED = "its engine loads and answers a canary"


def bring_all(here: Sites, of: Sequence[Instance]) -> Mapping[str, str]:
    return steps.bring_all(here, of, {})


def needs(plan: Plan, subject: str) -> tuple[str, ...]:
    return next(step.needs for step in plan if step.subject == subject and step.verb == "create")


def said(**engine: object) -> Result:
    return Result(0, json.dumps({"engines": {"vllm-instance-m-1": engine}}))


def waiting(plan: Plan, subject: str) -> Wait:
    action = next(one.action for one in plan if one.verb == "await" and one.subject == subject)
    assert isinstance(action, Wait)
    return action


def test_each_is_written_down_created_and_awaited_on_its_own_host() -> None:
    found = fleet()
    here = sites(found)
    ready = bring_all(here, decide(asked(2), found).of)
    assert lines(here.draft.finished()) == (
        "gpu-01: write instance m-1 (not there)\n"
        "gpu-01: write package abcdef123456 (not there)\n"
        "gpu-01: create folders of m-1 (not found)\n"
        "gpu-01: create vllm-instance-m-1 (not found)\n"
        f"gpu-01: await instance m-1 ({AWAITED})\n"
        "gpu-01: write instance m-2 (not there)\n"
        "gpu-02: write package abcdef123456 (not there)\n"
        "gpu-02: create folders of m-2 (not found)\n"
        "gpu-02: create vllm-instance-m-2 (not found)\n"
        f"gpu-02: await instance m-2 ({AWAITED})"
    )
    assert ready == {"m-1": "gpu-01: await instance m-1", "m-2": "gpu-02: await instance m-2"}


def test_the_whole_command_of_a_container_can_be_read() -> None:
    found = fleet()
    here = sites(found)
    bring_all(here, decide(asked(1), found).of)
    create = next(one for one in here.draft.steps if one.subject == "vllm-instance-m-1")
    text = str(create.command)
    assert text.startswith("docker run --detach --name vllm-instance-m-1 --restart unless-stopped")
    assert "--label vllmdeploy.role=instance" in text
    assert "--label vllmdeploy.cards=0 " in text
    assert "--gpus '\"device=0\"'" in text
    assert "-m vllmdeploy.node.warden --name vllm-instance-m-1 --role instance" in text
    assert "/run/vllmdeploy/services" not in text
    assert text.endswith("--max-num-seqs 6 --gpu-memory-utilization 0.96")


def test_the_next_on_a_host_waits_for_the_weights_and_on_a_card_for_the_first_answer() -> None:
    found = fleet(bare("gpu-01", "10.0.0.1", head=True))
    here = sites(found)
    bring_all(here, decide(asked(4, per_card=2), found).of)
    plan = here.draft.finished()
    assert "gpu-01: await weights of m-2" in needs(plan, "vllm-instance-m-3")
    assert "gpu-01: await instance m-1" in needs(plan, "vllm-instance-m-2")
    assert "gpu-01: await instance m-3" in needs(plan, "vllm-instance-m-4")
    weights = waiting(plan, "weights of m-2").missing
    two = "vllm-instance-m-2"

    def state(**engine: object) -> str | None:
        return weights(Result(0, json.dumps({"engines": {two: engine}})))

    assert state(state="starting") == "starting"
    assert state(state="starting", last_lines=["INFO Loading weights took 3.1 seconds"]) is None
    assert state(state="backing-off", failures=1) is None
    assert state(state="running") is None


def test_one_that_dies_says_its_last_lines_and_stops_nobody_on_other_cards() -> None:
    found = fleet(bare("gpu-01", "10.0.0.1", head=True))
    here = sites(found)
    bring_all(here, decide(asked(2), found).of)
    plan = here.draft.finished()
    missing = waiting(plan, "instance m-1").missing
    with pytest.raises(NotHealthy) as raised:
        missing(said(state="backing-off", failures=2, last_lines=["x", "ValueError: no room"]))
    assert str(raised.value) == (
        "gpu-01: instance m-1 does not start: \n"
        "    ValueError: no room\n"
        "  -> vllmdeploy instances logs m"
    )
    assert not any("await instance" in need for need in needs(plan, "vllm-instance-m-2"))


def running(found: FoundInstances, decision: Instances, **changes: str) -> FoundInstances:
    """As it is once they have been started by the process runtime."""
    what = wanted(runtime="process", python="python3")
    made = sites(found, what).supervisor
    members = []
    for member in found.members:
        nodes = tuple(
            FoundNode(
                name=one.node.name,
                id=one.node.name,
                role="instance",
                group="default",
                running=changes.get("state") != "not running",
                state=changes.get("state", "running"),
                cluster="vllm",
                fingerprint=made.make(what, one.member, one.node).fingerprint,
                cards=one.slot.cards,
            )
            for one in decision.of
            if one.slot.host == member.name
        )
        there = replace(member.found, supervised=nodes, packages=("abcdef123456",))
        members.append(replace(member, found=there))
    engines = {
        one.service.name: EngineState(state=changes.get("engine", "running"), reason="why")
        for one in decision.of
    }
    return replace(found, members=tuple(members), stored=kept(decision), engines=engines)


def started(**changes: str) -> tuple[Sites, Instances]:
    what = wanted(runtime="process", python="python3")
    found = fleet(what=what)
    first = decide(asked(2), found, what)
    found = running(found, first, **changes)
    return sites(found, what), decide(asked(2), found, what)


def test_those_that_run_as_wanted_are_left_alone() -> None:
    here, again = started()
    assert bring_all(here, again.of) == {}
    assert here.draft.steps == []


def test_a_node_that_is_down_is_started_and_one_that_gave_up_restarted() -> None:
    here, again = started(state="not running")
    bring_all(here, again.of[:1])
    assert lines(here.draft.finished()) == (
        "gpu-01: start vllm-instance-m-1 (it is not running)\n"
        f"gpu-01: await instance m-1 ({AWAITED})"
    )
    here, again = started(engine="crash-loop")
    bring_all(here, again.of[:1])
    assert lines(here.draft.finished()) == (
        "gpu-01: stop vllm-instance-m-1 (crash-loop: why)\n"
        "gpu-01: start vllm-instance-m-1 (crash-loop: why)\n"
        f"gpu-01: await instance m-1 ({AWAITED})"
    )


def test_one_that_still_loads_is_awaited() -> None:
    here, again = started(engine="starting")
    bring_all(here, again.of[:1])
    assert lines(here.draft.finished()) == "gpu-01: await instance m-1 (starting: why)"


def test_other_settings_make_the_node_anew() -> None:
    here, again = started()
    one = replace(again.of[0], node=replace(again.of[0].node, environment={"A": "b"}))
    steps.bring(here, one, ())
    assert lines(here.draft.finished()).splitlines()[:2] == [
        "gpu-01: stop vllm-instance-m-1 (settings changed)",
        "gpu-01: remove vllm-instance-m-1 (settings changed)",
    ]


def test_an_end_drains_then_removes_the_node_and_then_its_spec() -> None:
    here, again = started()
    steps.end(here, again.of[1].service, "instances stop", ())
    plan = here.draft.finished()
    assert lines(plan) == (
        "gpu-02: drain instance m-2 (no request is cut off)\n"
        "gpu-02: stop vllm-instance-m-2 (instances stop)\n"
        "gpu-02: remove vllm-instance-m-2 (instances stop)\n"
        "gpu-01: remove instance m-2 (instances stop)"
    )
    assert plan.steps[-1].command.argv[-1] == "/var/lib/vllmdeploy/vllm/instances/m-2.json"


def test_what_did_not_start_leaves_nothing_behind() -> None:
    found = fleet()
    here = sites(found)
    first, second = decide(asked(2), found).of
    steps.undo(here, first, made=True)
    steps.undo(here, second, made=False)
    assert lines(here.draft.finished()) == (
        "gpu-01: stop vllm-instance-m-1 (it did not start)\n"
        "gpu-01: remove vllm-instance-m-1 (it did not start)\n"
        "gpu-01: remove instance m-1 (it did not start)\n"
        "gpu-01: remove instance m-2 (it did not start)"
    )


def test_an_image_that_is_lacking_is_pulled_once_for_all_of_a_host() -> None:
    host = bare("gpu-01", "10.0.0.1", head=True, image=None, contents=None, cards=cards(2))
    found = fleet(host, vllm={})
    here = sites(found)
    bring_all(here, decide(asked(2), found).of)
    pulls = [one.key for one in here.draft.steps if one.verb == "pull"]
    assert pulls == ["gpu-01: pull image vllm/vllm-openai:v0.17.0"]
