from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from tests.plan.builders import wanted
from tests.plan.service_builders import (
    ASKED,
    MODEL,
    VLLM,
    group,
    service,
    stored,
    used,
    with_ray,
    without_node,
)
from vllmdeploy.accelerators import registry
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan.service import DecidedService, decide_service, model_folder
from vllmdeploy.plan.service_cards import pool_of
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted, inside
from vllmdeploy.tools.ray import RayCluster
from vllmdeploy.tools.system import Listener
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_model import FoundModel


def decide(
    asked: ServiceWanted = ASKED, found: FoundServices | None = None, **more: str
) -> DecidedService:
    return decide_service(wanted(), asked, found or group(), **more)


def refused(asked: ServiceWanted = ASKED, found: FoundServices | None = None) -> tuple[str, ...]:
    with pytest.raises(PreflightRefused) as caught:
        decide(asked, found)
    return tuple(caught.value.reasons)


def test_a_model_on_all_cards_of_two_hosts_gets_an_engine_file() -> None:
    decided = decide(replace(ASKED, model="org/m", aliases=("chat",), max_model_len=1024))
    assert shlex.join(decided.file.argv) == (
        "python3 -m vllm.entrypoints.cli.main serve /data/models/m"
        " --served-model-name m org/m /data/models/m chat --host 127.0.0.1 --port 8100"
        " --tensor-parallel-size 4 --distributed-executor-backend ray --max-model-len 1024"
    )
    document = json.loads(decided.file.content())
    assert document["needs"] == ["ray"]
    assert document["nodes"] == ["gpu-01", "gpu-02"]
    assert document["env"] == {
        "RAY_ADDRESS": "10.0.0.1:6379",
        "PYTHONSAFEPATH": "1",
        "VLLMDEPLOY_GENERATION": "1",
    }
    assert document["health_url"] == "http://127.0.0.1:8100/health"
    assert ServiceWanted.stored(document["service"]["asked"]).aliases == ("chat",)


def test_zero_cards_are_all_of_them() -> None:
    assert decide(replace(ASKED, tensor_parallel=0)).service.tensor_parallel == 4
    halves = decide(replace(ASKED, tensor_parallel=0, pipeline_parallel=2)).service
    assert (halves.tensor_parallel, halves.pipeline_parallel) == (2, 2)


def test_a_small_service_waits_for_no_host_in_particular() -> None:
    assert decide(replace(ASKED, tensor_parallel=2)).file.nodes == ()


def test_outside_of_a_container_the_named_interpreter_runs_it() -> None:
    what = wanted(runtime="process", python="/opt/v/bin/python")
    file = decide_service(what, ASKED, group()).file
    assert file.argv[:2] == ("/opt/v/bin/python", "-m")


@pytest.mark.parametrize("named", ["m", "org/m", "/data/models/m", "m/"])
def test_a_model_is_found_however_it_is_named(named: str) -> None:
    assert model_folder(wanted(), replace(ASKED, model=named)) == "/data/models/m"


@pytest.mark.parametrize("named", ["/elsewhere/m", "..", "a/..", "a b"])
def test_what_no_model_can_be_called_is_refused(named: str) -> None:
    with pytest.raises(UsageError):
        model_folder(wanted(), replace(ASKED, model=named))


def test_more_cards_than_there_are_says_where_they_are_and_who_holds_them() -> None:
    found = used(group(stored=stored(service("other", 2))), 2.0)
    assert refused(found=found) == (
        "4 cards are needed, 2 of 4 are free (gpu-01: 2, gpu-02: 2; other holds 2)",
    )


def test_cards_of_others_in_the_same_ray_are_not_free() -> None:
    assert refused(found=used(group(), 1.0)) == (
        "4 cards are needed, 3 of 4 are free"
        " (gpu-01: 2, gpu-02: 2; others on this Ray cluster hold 1)",
    )


def test_a_stored_service_keeps_its_cards_while_it_does_not_run() -> None:
    assert pool_of(group(stored=stored(service("other", 3)))).free == 1


def test_a_replaced_service_gives_its_cards_and_its_port_back() -> None:
    found = used(group(stored=stored(service("m", 4, port=8107))), 2.0)
    decided = decide(found=found, replaces="m")
    assert (decided.service.port, decided.service.generation) == (8107, 2)


def test_a_division_that_cannot_be_says_which_can() -> None:
    assert refused(replace(ASKED, tensor_parallel=3)) == (
        "8 attention heads cannot be divided by tensor parallel size 3;"
        " what works here: TP 1, 2 or 4",
    )


def test_pipeline_stages_are_for_cards() -> None:
    asked = replace(ASKED, tensor_parallel=2, pipeline_parallel=2)
    assert "--pipeline-parallel-size" in decide(asked).file.argv
    found = group()
    on_cpu = tuple(replace(one, accelerator=registry.named("cpu")) for one in found.members)
    assert "vLLM on processors has no pipeline stages: leave --pp out, TP spans hosts there" in (
        refused(asked, replace(found, members=on_cpu))
    )


def test_a_name_is_given_once() -> None:
    found = group(stored=stored(service("m", 1)))
    (reason,) = refused(replace(ASKED, tensor_parallel=1), found)
    assert reason.startswith("a service m is there already: `vllmdeploy restart-service m`")
    (reason,) = refused(replace(ASKED, name="ray"))
    assert reason == "'ray' cannot be a service's name: that is what a node calls a part of its own"


def test_a_model_that_is_not_on_every_host_offers_sync() -> None:
    found = group(models={"gpu-01": MODEL, "gpu-02": FoundModel()})
    assert refused(found=found) == (
        "gpu-02: model /data/models/m: not there",
        "bring it to every host with: vllmdeploy model sync m",
    )


def test_a_model_that_no_host_has_offers_to_download_it() -> None:
    found = group(models={"gpu-01": FoundModel(), "gpu-02": FoundModel()})
    assert refused(found=found)[-1] == (
        "none of them has it: vllmdeploy model download OWNER/m --sync,"
        " or model sync where another host does"
    )


def test_another_copy_on_one_host_is_no_copy() -> None:
    found = group(models={"gpu-01": replace(MODEL, digest="a"), "gpu-02": MODEL})
    assert refused(found=found)[0] == (
        "gpu-02: model /data/models/m is another copy than on gpu-01"
    )


def test_a_head_without_the_model_is_told_with_everything_else() -> None:
    reasons = refused(found=group(models={"gpu-01": FoundModel(), "gpu-02": MODEL}))
    assert "gpu-01: model /data/models/m: not there" in reasons


def test_a_model_whose_heads_nobody_can_count_is_left_to_vllm() -> None:
    odd = replace(MODEL, config='{"model_type": "mamba"}')
    found = group(models={"gpu-01": odd, "gpu-02": odd})
    assert decide(replace(ASKED, tensor_parallel=3), found).service.world == 3


def test_flags_that_vllm_does_not_take_are_refused_at_once() -> None:
    asked = replace(ASKED, arguments=("--port=1", "--enforce-eagre"))
    assert refused(asked) == (
        "--port is not given here: use ENGINE_PORTS, or API_PORT for the gateway",
        "vLLM 0.17.0 has no --enforce-eagre; did you mean --enforce-eager?",
    )


def test_quantization_is_a_method_that_the_image_has() -> None:
    assert "--quantization fp8" in shlex.join(decide(replace(ASKED, quantization="fp8")).file.argv)
    (reason,) = refused(replace(ASKED, quantization="int4"))
    assert reason.startswith("QUANTIZATION=int4: this vLLM cannot do that")


def test_without_ray_nothing_can_start() -> None:
    (reason,) = refused(found=with_ray(group(), None))
    assert reason == "gpu-01: no Ray head runs here: `vllmdeploy up` starts it"
    reasons = refused(found=with_ray(group(), RayCluster(problem="not asked yet")))
    assert reasons[0] == "gpu-01: Ray does not say what it has: not asked yet"
    reasons = refused(found=without_node(group(), "gpu-02"))
    assert reasons[0] == "Ray does not report gpu-02: `vllmdeploy up` mends that"


def test_an_image_without_vllm_says_so() -> None:
    assert refused(found=group(vllm=Vllm(problem="there is no vLLM"))) == (
        "gpu-01: there is no vLLM",
    )


def test_hosts_that_bring_no_card_say_how_they_would() -> None:
    found = group()
    nodes = tuple(replace(node, resources={}) for node in found.ray_nodes)
    reasons = refused(replace(ASKED, tensor_parallel=1), with_ray(found, RayCluster(nodes=nodes)))
    assert reasons[-1].startswith("no host brings a card into Ray")


def test_ports_that_somebody_has_are_passed_over() -> None:
    found = group(stored=stored(service("other", 0, port=8100)))
    head, other = found.members
    busy = replace(head, found=replace(head.found, listeners=(Listener(port=8101),)))
    asked = replace(ASKED, tensor_parallel=1)
    found = replace(found, members=(busy, other))
    assert decide(asked, found).service.port == 8102
    assert refused(replace(asked, ports=(8100, 8101)), found) == (
        "gpu-01: no free port in ENGINE_PORTS 8100-8101",
    )


def test_what_is_asked_of_an_engines_surroundings_runs_there() -> None:
    assert str(inside(wanted(), "n", "python3", "-V")) == "docker exec n python3 -V"
    what = wanted(runtime="process", python="/opt/v/bin/python")
    assert str(inside(what, "n", "python3", "-V")) == "/opt/v/bin/python -V"
    assert str(inside(what, "n", "true")) == "true"


def test_an_old_wish_is_read_by_a_newer_version() -> None:
    kept = {"model": "m", "gone_since": 1, "arguments": ["--x"]}
    assert ServiceWanted.stored(kept) == ServiceWanted(model="m", arguments=("--x",))
    assert VLLM.serve
