from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.builders import (
    after,
    bare,
    cards,
    foreign,
    instance,
    joined,
    lines,
    link,
    planned,
    settled,
    two_hosts,
    wanted,
)
from vllmdeploy.core.card import Card, CardReport
from vllmdeploy.core.plan import Plan
from vllmdeploy.core.spec import ROLE_LABEL
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import WantedGroup
from vllmdeploy.tools.docker import Engine
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.images import Image
from vllmdeploy.tools.network import Links
from vllmdeploy.tools.ray import RayCluster, RayNode
from vllmdeploy.tools.system import Firewall, Listener
from vllmdeploy.tools.warden import Warden


def test_bare_hosts_get_a_head_first_and_workers_when_it_answers() -> None:
    assert (
        lines(planned(wanted(), two_hosts()))
        == """\
gpu-01: create secrets folder (not found)
gpu-01: write Ray token (not found)
gpu-01: write package abcdef123456 (not there)
gpu-01: create folders (not found)
gpu-01: create vllm-ray-head (not found)
gpu-01: await Ray head (workers join a head that answers)
gpu-02: create secrets folder (not found)
gpu-02: write Ray token (not found)
gpu-02: write package abcdef123456 (not there)
gpu-02: create folders (not found)
gpu-02: create vllm-ray-worker (not found)
gpu-01: await Ray cluster of 2 hosts (all hosts and all cards)"""
    )


def test_the_worker_container_needs_the_head_to_answer() -> None:
    plan = planned(wanted(), two_hosts())
    worker = next(step for step in plan if step.subject == "vllm-ray-worker")
    assert "gpu-01: await Ray head" in worker.needs


def test_a_settled_fleet_has_nothing_to_do() -> None:
    assert lines(planned(wanted(), settled(wanted(), two_hosts()))) == ""


def test_a_changed_setting_recreates_the_containers_and_says_why() -> None:
    found = settled(wanted(), two_hosts())
    plan = planned(wanted(shm_size="32g"), found)
    assert (
        lines(plan)
        == """\
gpu-01: stop vllm-ray-head (settings changed)
gpu-01: remove vllm-ray-head (settings changed)
gpu-01: create folders (settings changed)
gpu-01: create vllm-ray-head (settings changed)
gpu-01: await Ray head (workers join a head that answers)
gpu-02: stop vllm-ray-worker (settings changed)
gpu-02: remove vllm-ray-worker (settings changed)
gpu-02: create folders (settings changed)
gpu-02: create vllm-ray-worker (settings changed)
gpu-01: await Ray cluster of 2 hosts (all hosts and all cards)"""
    )
    assert plan.destructive


def test_one_hosts_own_setting_recreates_that_host_alone() -> None:
    first, second = settled(wanted(), two_hosts())
    second = replace(second, host=replace(second.host, gpus=(0,)))
    plan = planned(wanted(), [first, second])
    assert {step.host for step in plan if step.verb != "await"} == {"gpu-02"}


def test_a_new_host_leaves_the_others_alone() -> None:
    found = [*settled(wanted(), two_hosts()), bare("gpu-03", "10.0.0.3")]
    plan = planned(wanted(), found)
    assert [step.key for step in plan if step.verb in ("create", "restart", "stop")] == [
        "gpu-03: create secrets folder",
        "gpu-03: create folders",
        "gpu-03: create vllm-ray-worker",
    ]
    assert plan.steps[-1].key == "gpu-01: await Ray cluster of 3 hosts"


def test_a_new_package_alone_restarts_nothing() -> None:
    found = settled(wanted(), two_hosts())
    assert lines(planned(wanted(package="fedcba654321"), found)) == ""


def test_a_killed_container_is_started_again() -> None:
    first, second = settled(wanted(), two_hosts())
    dead = replace(second.containers[0], state="exited", exit_code=137)
    plan = planned(wanted(), [first, replace(second, containers=(dead,))])
    assert (
        lines(plan)
        == """\
gpu-02: start vllm-ray-worker (it is exited (137))
gpu-01: await Ray cluster of 2 hosts (all hosts and all cards)"""
    )


def test_when_the_head_starts_anew_so_do_its_workers() -> None:
    first, second = settled(wanted(), two_hosts())
    dead = replace(first.containers[0], state="exited", exit_code=137)
    plan = planned(wanted(), [replace(first, containers=(dead,), ray=None), second])
    assert (
        lines(plan)
        == """\
gpu-01: start vllm-ray-head (it is exited (137))
gpu-01: await Ray head (workers join a head that answers)
gpu-02: restart vllm-ray-worker (the head starts anew)
gpu-01: await Ray cluster of 2 hosts (all hosts and all cards)"""
    )


def test_a_warden_that_gave_up_is_started_again() -> None:
    first, second = settled(wanted(), two_hosts())
    gave_up = {"vllm-ray-worker": Warden(state="crash-loop", reason="ray exited 1")}
    plan = planned(wanted(), [first, replace(second, wardens=gave_up)])
    assert lines(plan).startswith(
        "gpu-02: restart vllm-ray-worker (its warden gave up: ray exited 1)\n"
    )


@pytest.mark.parametrize(("since_s", "verb"), [(10.0, "await"), (500.0, "restart")])
def test_a_node_that_ray_lacks_gets_time_before_it_is_restarted(since_s: float, verb: str) -> None:
    first, second = settled(wanted(), two_hosts())
    only_head = RayCluster(
        nodes=(RayNode(name="gpu-01", ip="10.0.0.1", alive=True, resources={"GPU": 2.0}, used={}),)
    )
    found = [
        replace(first, ray=only_head),
        replace(second, wardens={"vllm-ray-worker": Warden(state="running", since_s=since_s)}),
    ]
    assert planned(wanted(), found).steps[0].verb == verb


def test_the_token_of_the_head_replaces_another_on_a_worker() -> None:
    first, second = settled(wanted(), two_hosts())
    plan = planned(wanted(), [first, replace(second, secrets={"ray/ray_token": "0" * 64})])
    assert (
        lines(plan)
        == """\
gpu-02: create secrets folder (the head's token differs)
gpu-02: write Ray token (differs from the head's)
gpu-02: restart vllm-ray-worker (the Ray token changed)
gpu-01: await Ray cluster of 2 hosts (all hosts and all cards)"""
    )


def test_no_secret_shows_in_a_plan() -> None:
    plan = planned(wanted(), two_hosts())
    assert not any("0123456789abcdef" in str(step.command) + repr(step) for step in plan)


def test_a_host_that_was_head_before_loses_its_head_node() -> None:
    first, second = settled(wanted(), two_hosts())
    swapped = [
        replace(first, host=replace(first.host, head=False), ray=None),
        replace(second, host=replace(second.host, head=True)),
    ]
    plan = planned(wanted(), swapped)
    assert "gpu-01: remove vllm-ray-head (gpu-01 is a ray-worker now)" in lines(plan)
    worker = next(step for step in plan if step.key == "gpu-01: create vllm-ray-worker")
    assert "gpu-01: remove vllm-ray-head" in worker.needs


def test_groups_have_clusters_of_their_own() -> None:
    groups = {
        "default": WantedGroup(name="default", image="a"),
        "hygon": WantedGroup(name="hygon", image="b"),
    }
    found = [
        *two_hosts(),
        bare("dcu-01", "10.0.0.5", head=True, group="hygon"),
        bare("dcu-02", "10.0.0.6", group="hygon"),
    ]
    plan = planned(wanted(groups=groups), found)
    heads = [step.key for step in plan if step.subject == "Ray head"]
    assert heads == ["gpu-01: await Ray head", "dcu-01: await Ray head"]
    worker = next(step for step in plan if step.key == "dcu-02: create vllm-ray-worker")
    assert "dcu-01: await Ray head" in worker.needs
    assert "--address=10.0.0.5:6379" in worker.command.argv


def test_cards_of_an_instance_stay_with_it() -> None:
    first, second = two_hosts()
    second = replace(second, containers=(instance("vllm-instance-a-1", 1),))
    plan = planned(wanted(), [first, second])
    worker = next(step for step in plan if step.key == "gpu-02: create vllm-ray-worker")
    assert "--num-gpus=1" in worker.command.argv
    assert "vllmdeploy.cards=0" in worker.command.argv
    assert "gpu-02: card 1 left out: held by vllm-instance-a-1" in plan.notes


def refused(found: list[FoundHost], **changes: object) -> tuple[str, ...]:
    with pytest.raises(PreflightRefused) as caught:
        planned(wanted(**changes), found)
    return caught.value.reasons


def test_a_strangers_container_of_our_name_is_never_touched() -> None:
    first, second = two_hosts()
    found = [first, replace(second, containers=(foreign("vllm-ray-worker"),))]
    assert refused(found) == (
        "gpu-02: a container named vllm-ray-worker is there already and is not ours (redis:7):"
        " rename it, or choose another CLUSTER_NAME",
    )


def test_every_reason_is_said_at_once() -> None:
    first, second = two_hosts()
    found = [
        replace(
            first,
            listeners=(Listener(port=6379, pid=812, program="redis-server"),),
        ),
        replace(second, engine=Engine(problem="the Docker daemon is not running")),
    ]
    assert refused(found) == (
        "gpu-01: port 6379 is taken by redis-server (pid 812) (choose another in config.env)",
        "gpu-02: the Docker daemon is not running",
    )


def test_our_own_node_may_hold_its_ports() -> None:
    first, second = settled(wanted(), two_hosts())
    first = replace(first, listeners=(Listener(port=6379, pid=1, program="gcs_server"),))
    assert lines(planned(wanted(), [first, second])) == ""


def test_an_image_without_ray_is_refused_with_the_way_out() -> None:
    first, second = two_hosts()
    bare_image = ImageContents(python="3.12.3", vllm="0.33.0")
    found = [replace(first, contents=bare_image), replace(second, contents=bare_image)]
    assert refused(found, executor="ray")[0] == (
        "gpu-01: image vllm/vllm-openai:v0.17.0 has no Ray: build one that has it with"
        " `vllmdeploy image build`, or set EXECUTOR=mp"
    )


def test_different_versions_inside_a_group_are_named() -> None:
    first, second = two_hosts()
    other = ImageContents(python="3.12.3", ray="2.55.0", vllm="0.17.0")
    assert refused([first, replace(second, contents=other)]) == (
        "group default: different versions of ray: 2.60.0 on gpu-01; 2.55.0 on gpu-02",
    )


def test_different_builds_inside_a_group_are_named() -> None:
    first, second = two_hosts()
    layers = ("sha256:base",)
    ours = Image(id="sha256:" + "1" * 64, arch="amd64", layers=layers, content="one")
    other = Image(id="sha256:" + "2" * 64, arch="amd64", layers=layers, content="two")
    first = replace(first, image=ours)
    assert refused([first, replace(second, image=other)]) == (
        "group default: different images: 111111111111 on gpu-01; 222222222222 on gpu-02"
        " (bring one of them to all with `vllmdeploy image push vllm/vllm-openai:v0.17.0`)",
    )
    in_containerd = replace(other, content="one")
    assert planned(wanted(), [first, replace(second, image=in_containerd)])


def test_a_ray_without_tokens_asks_for_a_decision() -> None:
    old = ImageContents(python="3.10.2", ray="2.43.0", vllm="0.8.5")
    found = [replace(host, contents=old) for host in two_hosts()]
    assert refused(found)[0].startswith("group default: Ray 2.43.0 has no token authentication")
    plan = planned(wanted(ray_auth="none"), found)
    assert not any(step.subject == "Ray token" for step in plan)
    assert "RAY_AUTH=none: whoever reaches Ray's ports runs code on the hosts" in plan.notes


def test_an_image_for_another_architecture_is_refused() -> None:
    first, second = two_hosts()
    arm = replace(second, system=replace(second.system, machine="aarch64"))
    assert refused([first, arm]) == (
        "gpu-02: image vllm/vllm-openai:v0.17.0 is built for amd64, the host is arm64:"
        " set an IMAGE_<GROUP> built for it",
    )


def test_a_subset_that_names_a_missing_card_is_refused() -> None:
    first, _ = two_hosts()
    assert refused([first, bare("gpu-02", "10.0.0.2", gpus=(0, 7))]) == (
        "gpu-02: gpus= names card 7, which is not there (it has 0,1)",
    )


def test_no_space_is_refused_before_anything_is_done() -> None:
    first, second = two_hosts()
    full = replace(second, system=replace(second.system, state_free_mib=3))
    assert refused([first, full]) == (
        "gpu-02: 3 MiB free in /var/lib/vllmdeploy/vllm: at least 512",
    )


def test_a_card_in_an_error_state_is_left_out_and_said() -> None:
    first, second = two_hosts()
    sick = (Card(index=0, name="H200"), Card(index=1, name="H200", problem="fell off the bus"))
    second = replace(second, cards=CardReport(vendor="nvidia", cards=sick))
    plan = planned(wanted(), [first, second])
    worker = next(step for step in plan if step.key == "gpu-02: create vllm-ray-worker")
    assert "--num-gpus=1" in worker.command.argv
    assert "gpu-02: card 1 left out: fell off the bus" in plan.notes


def test_a_firewall_is_named_with_the_exact_lines() -> None:
    first, second = two_hosts()
    plan = planned(wanted(), [replace(first, firewall=Firewall("ufw")), second])
    assert "  sudo ufw allow from 10.0.0.2 to any proto tcp comment vllmdeploy" in plan.notes


def test_a_name_that_resolves_to_loopback_is_said() -> None:
    first, second = two_hosts()
    first = replace(first, system=replace(first.system, own_address="127.0.1.1"))
    assert any("resolves to 127.0.1.1" in note for note in planned(wanted(), [first, second]).notes)


def test_sudo_stands_in_front_where_the_host_needs_it() -> None:
    first, second = two_hosts()
    found = [first, replace(second, access=replace(second.access, sudo_docker=True))]
    worker = next(
        step for step in planned(wanted(), found) if step.key == "gpu-02: create vllm-ray-worker"
    )
    assert worker.command.argv[:5] == ("sudo", "-n", "--", "docker", "run")


@st.composite
def fleets(draw: st.DrawFn) -> list[FoundHost]:
    """Fleets of one or two groups in any state between bare and settled."""
    count = draw(st.integers(1, 5))
    found = [bare(f"gpu-{n}", f"10.0.0.{n}", head=n == 1) for n in range(1, count + 1)]
    found = [replace(host, cards=cards(draw(st.integers(1, 8)))) for host in found]
    if draw(st.booleans()):
        found = after(_some(draw, planned(wanted(), found)), found)
    states = st.sampled_from(["running", "exited", "created", "dead"])
    return [
        replace(
            host,
            containers=tuple(replace(one, state=draw(states)) for one in host.containers),
        )
        for host in found
    ]


def _some(draw: st.DrawFn, plan: Plan) -> Plan:
    return Plan(plan.steps[: draw(st.integers(0, len(plan)))])


def _joined_with_their_cards(found: list[FoundHost]) -> list[FoundHost]:
    nodes = tuple(
        RayNode(
            name=host.host.name,
            ip=host.links.interfaces[0].ip,
            alive=True,
            resources={"GPU": float(len(host.cards.cards))},
            used={},
        )
        for host in found
    )
    return [
        replace(one, ray=RayCluster(nodes=nodes)) if one.host.head else one for one in joined(found)
    ]


@given(fleets())
@settings(max_examples=150, deadline=None)
def test_from_any_state_a_carried_out_plan_leaves_nothing_to_do(found: list[FoundHost]) -> None:
    plan = planned(wanted(), found)
    seen: set[str] = set()
    for step in plan:
        assert set(step.needs) <= seen
        seen.add(step.key)
    done = _joined_with_their_cards(after(plan, found))
    assert lines(planned(wanted(), done)) == ""
    for host in done:
        roles = [one.labels[ROLE_LABEL] for one in host.containers]
        assert roles == ["ray-head" if host.host.head else "ray-worker"]


@given(st.sets(st.integers(0, 7)), st.one_of(st.none(), st.sets(st.integers(0, 7), min_size=1)))
@settings(max_examples=100, deadline=None)
def test_no_card_is_promised_twice(held: set[int], allowed: set[int] | None) -> None:
    host = bare(
        "gpu-01", "10.0.0.1", head=True, gpus=None if allowed is None else tuple(sorted(allowed))
    )
    found = replace(
        host, cards=cards(8), containers=(instance("vllm-instance-a-1", *sorted(held)),)
    )
    plan = planned(wanted(), [found])
    argv = next(step for step in plan if step.subject == "vllm-ray-head").command.argv
    label = next(word for word in argv if word.startswith("vllmdeploy.cards="))
    given_to_ray = {int(card) for card in label.partition("=")[2].split(",") if card}
    assert not given_to_ray & held
    assert (
        given_to_ray
        == ((allowed or set(range(8))) if allowed is not None else set(range(8))) - held
    )


def test_a_faster_unused_interface_is_named() -> None:
    first, second = two_hosts()
    first = replace(
        first,
        links=Links(
            interfaces=(link("10.0.0.1"), link("10.9.0.1", "ib0", 200_000)),
            default_interface="eth0",
        ),
    )
    notes = planned(wanted(), [first, second]).notes
    assert (
        "gpu-01: 10.0.0.1 on eth0, 10 Gbit/s; faster NIC unused: ib0 10.9.0.1 (200 Gbit/s)" in notes
    )
