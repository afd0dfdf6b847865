"""Nodes without Ray: what `auto` chooses, what is not asked of them, and how they come up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import after, bare, decided, joined, lines, planned, two_hosts, wanted
from vllmdeploy.core.command import Result
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.executor import executor_of
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.system import Listener
from vllmdeploy.tools.warden import ray_missing, statuses


def stock(what: dict[str, Any] | None = None) -> list[FoundHost]:
    """Two hosts whose image is vLLM's own, without Ray."""
    hosts = two_hosts()
    contents = hosts[0].contents
    assert contents is not None
    return [replace(one, contents=replace(contents, ray=""), **(what or {})) for one in hosts]


MP: Wanted = wanted(executor="mp")


def test_auto_is_ray_unless_the_image_has_none_and_says_so() -> None:
    assert executor_of(wanted(), two_hosts()) == "ray"
    assert executor_of(wanted(), [bare("a", "10.0.0.1", contents=None)]) == "ray"
    assert executor_of(MP, two_hosts()) == "mp"
    plan = planned(wanted(), stock())
    assert plan.notes[0] == (
        "group default: its image has no Ray: services span hosts by vLLM's own ranks"
        " (EXECUTOR=mp); `vllmdeploy image build` makes an image with Ray"
    )
    assert not any("no Ray" in note for note in planned(MP, stock()).notes)


def test_ray_that_is_asked_for_and_not_there_is_refused() -> None:
    with pytest.raises(PreflightRefused) as caught:
        planned(wanted(executor="ray"), stock())
    assert "has no Ray: build one that has it" in str(caught.value.reasons)


def test_nodes_without_ray_come_up_by_themselves() -> None:
    plan = planned(MP, two_hosts())
    assert lines(plan) == (
        "gpu-01: write package abcdef123456 (not there)\n"
        "gpu-01: create folders (not found)\n"
        "gpu-01: create vllm-ray-head (not found)\n"
        "gpu-01: await node (it runs engines)\n"
        "gpu-02: write package abcdef123456 (not there)\n"
        "gpu-02: create folders (not found)\n"
        "gpu-02: create vllm-ray-worker (not found)\n"
        "gpu-02: await node (it runs engines)"
    )
    (made,) = [step for step in plan if step.key == "gpu-01: create vllm-ray-head"]
    said = str(made.command)
    assert said.endswith("--services /run/vllmdeploy/services --stop-limit 60 --")
    assert "ray_token" not in said
    assert "--ray-address" not in said
    assert "RAY_" not in said.replace("RAY_EXPERIMENTAL", "")


def test_what_is_up_without_ray_stays_as_it_is() -> None:
    hosts = after(planned(MP, stock()), stock())
    assert planned(MP, hosts).steps == ()
    assert planned(wanted(), hosts).steps == ()


def test_ports_that_only_ray_needs_may_be_taken() -> None:
    busy = [replace(one, listeners=(Listener(port=6379),)) for one in two_hosts()]
    assert planned(MP, busy).steps
    with pytest.raises(PreflightRefused):
        planned(wanted(), busy)


def test_another_executor_makes_other_nodes() -> None:
    hosts = joined(after(planned(wanted(), two_hosts()), two_hosts()))
    changed = [step.key for step in planned(MP, hosts) if step.verb == "create"]
    assert "gpu-01: create vllm-ray-head" in changed
    assert decided(MP, hosts)["default"].members[0].token is False


def test_a_warden_without_ray_runs_when_it_answers() -> None:
    document = '{"role": "head", "ray": null, "state": "degraded", "started_at": 90}'
    assert ray_missing(Result(0, document)) is None
    (warden,) = statuses("/r").parse(Result(0, f"@@now@@100\n@@node@@n\n{document}")).values()
    assert (warden.state, warden.without_ray, warden.since_s) == ("running", True, 10.0)
