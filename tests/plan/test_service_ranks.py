"""Services without Ray: where their ranks go, and the files by which each host runs its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import lines, wanted
from tests.plan.service_builders import ASKED, VLLM, group, running, stored
from vllmdeploy.core.command import Result
from vllmdeploy.core.plan import Draft
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan import service_ranks as ranks
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.service import DecidedService, decide_service
from vllmdeploy.plan.service_cards import pool_of
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.supervise import InDocker
from vllmdeploy.tools.files import digest
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_engine import parse_engine
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.tools.vllm_services import stored as stored_on
from vllmdeploy.tools.warden import Warden

MP = wanted(executor="mp")
SPANNING = replace(VLLM, flags=VLLM.flags | {"--nnodes", "--headless"})


def without_ray(**changes: Any) -> FoundServices:
    """Two hosts of two cards each whose nodes have no Ray."""
    found = group(MP)
    members = tuple(
        replace(
            one,
            executor="mp",
            found=replace(one.found, ray=None, wardens={"n": Warden(without_ray=True)}),
        )
        for one in found.members
    )
    return replace(found, **{"members": members, "vllm": SPANNING, **changes})


def decide(
    asked: ServiceWanted = ASKED, found: FoundServices | None = None, **more: str
) -> DecidedService:
    return decide_service(MP, asked, found or without_ray(), **more)


def refused(asked: ServiceWanted = ASKED, found: FoundServices | None = None) -> tuple[str, ...]:
    with pytest.raises(PreflightRefused) as caught:
        decide(asked, found)
    return tuple(caught.value.reasons)


def also(*services: Service) -> FoundServices:
    return without_ray(stored=stored(*services))


def named(name: str, cards: int, found: FoundServices | None = None) -> Service:
    return decide(replace(ASKED, name=name, tensor_parallel=cards), found).service


@pytest.mark.parametrize(
    ("free", "count", "placed"),
    [
        ({"a": (0, 1), "b": (0, 1)}, 2, {"a": (0, 1)}),
        ({"a": (0, 1), "b": (1,)}, 1, {"b": (1,)}),
        ({"a": (0, 1), "b": (0, 1)}, 4, {"a": (0, 1), "b": (0, 1)}),
        ({"a": (1,), "b": (), "c": (0, 1)}, 2, {"c": (0, 1)}),
        ({"a": (1,), "b": (), "c": (0,)}, 2, {"a": (1,), "c": (0,)}),
        ({"a": (0, 1, 2), "b": (0,)}, 4, {}),
        ({"a": (0,), "b": (0,)}, 3, {}),
        ({}, 1, {}),
    ],
)
def test_ranks_go_to_the_fewest_hosts_that_give_the_same_number(
    free: Mapping[str, tuple[int, ...]], count: int, placed: Mapping[str, tuple[int, ...]]
) -> None:
    assert ranks.place(free, count) == placed


def test_a_service_over_two_hosts_has_a_file_for_each() -> None:
    decided = decide()
    assert shlex.join(decided.file.argv) == (
        "python3 -m vllm.entrypoints.cli.main serve /data/models/m"
        " --served-model-name m /data/models/m --host 127.0.0.1 --port 8100"
        " --tensor-parallel-size 4 --distributed-executor-backend mp"
        " --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --master-port 8101"
    )
    content = decided.file.content()
    head = json.loads(content)
    assert (head["node"], head["needs"], head["nodes"]) == ("gpu-01", [], [])
    assert "RAY_ADDRESS" not in head["env"]
    assert head["ranks"] == {
        "index": 0,
        "hosts": [["gpu-01", "10.0.0.1"], ["gpu-02", "10.0.0.2"]],
        "port": 8102,
        "generation": "1",
    }
    ((host, piece),) = ranks.files_elsewhere(content, "gpu-01").items()
    other = json.loads(piece)
    assert (host, other["node"], other["ranks"]["index"]) == ("gpu-02", "gpu-02", 1)
    assert shlex.join(other["argv"]).endswith(
        "--nnodes 2 --node-rank 1 --headless --master-addr 10.0.0.1 --master-port 8101"
    )
    assert not {"health_url", "canary_url", "canary_body", "metrics_url"} & set(other)


def test_a_service_of_one_host_knows_no_ranks() -> None:
    decided = decide(replace(ASKED, tensor_parallel=2))
    assert decided.service.placement == {"gpu-01": (0, 1)}
    assert "--nnodes" not in decided.file.argv
    assert ranks.files_elsewhere(decided.file.content(), "gpu-01") == {}


def test_services_share_a_host_by_the_cards_that_they_see() -> None:
    first = named("a", 1)
    second = named("b", 1, also(first))
    assert (first.visible, second.visible) == (
        {"gpu-01": {"CUDA_VISIBLE_DEVICES": "0"}},
        {"gpu-01": {"CUDA_VISIBLE_DEVICES": "1"}},
    )
    third = decide(replace(ASKED, name="c", tensor_parallel=2), also(first, second))
    assert (third.service.leader, third.service.host) == ("gpu-02", "10.0.0.2")
    content = third.file.content()
    assert ranks.files_elsewhere(content, "gpu-01") == {"gpu-02": content}
    assert pool_of(also(first, second, third.service)).free == 0


def test_ranks_on_several_hosts_see_cards_of_their_own() -> None:
    busy = also(named("a", 1))
    asked = replace(ASKED, tensor_parallel=1, pipeline_parallel=2, name="b")
    full = also(named("a", 1), replace(named("x", 1), placement={"gpu-02": (0,)}, visible={}))
    decided = decide(asked, full)
    assert decided.service.placement == {"gpu-01": (1,), "gpu-02": (1,)}
    document = json.loads(decided.file.content())
    assert document["env"]["CUDA_VISIBLE_DEVICES"] == "1"
    (piece,) = ranks.files_elsewhere(decided.file.content(), "gpu-01").values()
    assert json.loads(piece)["env"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert decide(replace(asked, pipeline_parallel=1), busy).service.placement == {"gpu-01": (1,)}


def test_what_is_stored_is_read_again_as_it_was() -> None:
    service = decide().service
    kept = decide().file.content().decode()
    said = Result(0, f"\n@@service@@m.json\n{kept}")
    assert stored_on("/s").parse(said)["m"].service == replace(
        service, asked=json.loads(json.dumps(service.document()))["asked"]
    )


def test_a_replaced_service_keeps_its_ports_where_it_stays() -> None:
    before = named("m", 4)
    found = also(before)
    again = decide_service(MP, ASKED, found, replaces="m").service
    assert (again.ports, again.generation) == (before.ports, 2)
    smaller = replace(ASKED, tensor_parallel=2)
    assert len(decide_service(MP, smaller, found, replaces="m").service.ports) == 1


def test_what_cannot_run_without_ray_says_why() -> None:
    assert refused(replace(ASKED, tensor_parallel=8)) == (
        "8 cards are needed, 4 of 4 are free (gpu-01: 2, gpu-02: 2)",
    )
    uneven = also(named("a", 1))
    (reason,) = refused(replace(ASKED, name="b", tensor_parallel=1, pipeline_parallel=3), uneven)
    assert reason == (
        "without Ray every host gives the same number of cards, and no hosts have 3 free in equal"
        " parts (gpu-01: 1, gpu-02: 2)"
    )
    old = without_ray(vllm=VLLM)
    assert refused(found=old)[0].startswith("vLLM 0.17.0 cannot span hosts without Ray")
    broken = without_ray(vllm=replace(SPANNING, serve=False))
    assert refused(found=broken)[0].startswith("vLLM 0.17.0 lacks its own command line here")
    assert refused(found=without_ray(vllm=Vllm(problem="there is no vLLM"))) == (
        "gpu-01: there is no vLLM",
    )
    with_ray = tuple(
        replace(one, found=replace(one.found, wardens={})) for one in without_ray().members
    )
    assert refused(found=without_ray(members=with_ray)) == tuple(
        f"{host}: no node without Ray runs here: `vllmdeploy up` makes it"
        for host in ("gpu-01", "gpu-02")
    )
    assert refused(replace(ASKED, ports=(8100, 8101))) == (
        "gpu-01: no 3 free ports in ENGINE_PORTS 8100-8101",
    )


def ground(found: FoundServices) -> Ground:
    return Ground(
        draft=Draft(), wanted=MP, supervisor=InDocker(), head=found.head, members=found.with_ranks
    )


def test_files_of_all_ranks_are_written_before_the_head_knows() -> None:
    here, decided = ground(without_ray()), decide()
    written = steps.write(here, "m", decided.file.content(), "not there")
    steps.await_answer(here, decided.service, "it answers", (written,), fresh=True)
    assert lines(here.draft.finished()) == (
        "gpu-02: write service m (not there)\n"
        "gpu-01: write service m (not there)\n"
        "gpu-01: await service m (it answers)"
    )


def test_a_service_led_elsewhere_is_awaited_and_drained_there() -> None:
    found = also(named("a", 2))
    here = ground(found)
    service = named("b", 2, found)
    steps.await_answer(here, service, "it answers", (), fresh=True)
    steps.drain(here, service, ())
    assert [(step.host, step.verb) for step in here.draft.steps] == [
        ("gpu-02", "await"),
        ("gpu-02", "drain"),
    ]
    assert "vllm-ray-worker" in str(here.draft.steps[0].command)


def test_ranks_end_after_the_one_that_may_lead_them() -> None:
    here = ground(without_ray())
    gone = steps.remove(here, "m", "stop-service", ranks=("gpu-01", "gpu-02"))
    assert gone == ("gpu-02: await end of m",)
    assert [step.key for step in here.draft.steps] == [
        *("gpu-01: remove service m", "gpu-01: await end of m"),
        *("gpu-02: remove service m", "gpu-02: await end of m"),
    ]
    assert here.draft.steps[2].needs == ("gpu-01: await end of m",)


def test_a_host_that_lost_its_ranks_file_gets_it_again() -> None:
    content = decide().file.content()
    (piece,) = ranks.files_elsewhere(content, "gpu-01").values()
    lost = ground(without_ray())
    assert steps.restore_ranks(lost, "m", content, {}) == ("gpu-02: write service m",)
    there = ground(without_ray())
    assert steps.restore_ranks(there, "m", content, {"gpu-02": {"m.json": digest(piece)}}) == ()


def test_what_belongs_on_a_host_that_is_not_there_is_not_written_to_the_head() -> None:
    content = decide().file.content()
    found = without_ray()
    here = ground(replace(found, members=found.members[:1]))
    assert steps.restore_ranks(here, "m", content, {}) == ()
    assert steps.write(here, "m", content, "changed") == "gpu-01: write service m"
    steps.remove(here, "m", "stop-service", ranks=("gpu-01", "gpu-02"))
    assert {step.host for step in here.draft.steps} == {"gpu-01"}


def test_the_rank_that_failed_most_speaks_for_its_engine() -> None:
    rank = {"rank": 1, "host": "gpu-02", "state": "backing-off", "reason": "exited with code 1"}
    shown = {
        "state": "waiting",
        "reason": "rank 1 on gpu-02 is backing-off (exited with code 1)",
        "ranks": [{**rank, "failures": 2, "exit_code": 1, "lines": ["ValueError: no"]}],
    }
    state = parse_engine(Result(0, json.dumps({"engines": {"m": shown}})), "m")
    assert (state.failures, state.exit_code, state.last_lines) == (
        2,
        1,
        ("gpu-02: ValueError: no",),
    )
    assert state.failure == "rank 1 on gpu-02: exited with code 1"
    up = parse_engine(Result(0, json.dumps({"engines": {"m": {**shown, "state": "running"}}})), "m")
    assert up.failures == 0
    assert running("m")["m"].state == up.state
