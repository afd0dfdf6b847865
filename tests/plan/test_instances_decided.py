"""From a wish and what was found to instances, or to every reason against them at once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.plan.builders import bare, cards, instance, wanted
from tests.plan.instance_builders import MODEL, asked, decide, fleet, kept
from tests.plan.service_builders import service
from vllmdeploy.core.card import CardProcess, CardReport
from vllmdeploy.core.command import Result
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.instances_wanted import asked_of, instances_of, slot_of
from vllmdeploy.tools.system import Listener
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import stored


def refusals(*wish: object, **more: object) -> list[str]:
    with pytest.raises(PreflightRefused) as refused:
        decide(*wish, **more)  # type: ignore[arg-type]  # handed on as it is
    return refused.value.message.splitlines()[1:]


def test_an_instance_is_a_service_of_one_engine_on_its_own_cards() -> None:
    first, second = decide(asked(2), fleet()).of
    assert [str(one.slot) for one in (first, second)] == [
        "instance 1: gpu-01, card 0, port 8001",
        "instance 2: gpu-02, card 0, port 8001",
    ]
    assert (first.service.name, first.service.belongs_to) == ("m-1", "m")
    assert (first.service.url, second.service.url) == (
        "http://127.0.0.1:8001",
        "http://10.0.0.2:8001",
    )
    assert " ".join(second.node.command) == (
        "python3 -m vllm.entrypoints.cli.main serve /data/models/m --served-model-name m"
        " /data/models/m --host 10.0.0.2 --port 8001 --tensor-parallel-size 1"
        " --max-model-len 2048 --max-num-seqs 6 --gpu-memory-utilization 0.96"
    )
    assert second.node.name == "vllm-instance-m-2"
    assert second.node.labels("f")["vllmdeploy.cards"] == "0"
    assert second.node.labels("f")["vllmdeploy.service"] == "m"


def test_its_warden_asks_it_for_a_token() -> None:
    (one,) = decide(asked(1), fleet()).of
    url = "http://127.0.0.1:8001"
    flags = dict(zip(one.node.probes[::2], one.node.probes[1::2], strict=True))
    assert json.loads(flags.pop("--canary-body"))["max_tokens"] == 1
    assert flags == {
        "--start-limit": "1800",
        "--health-url": f"{url}/health",
        "--metrics-url": f"{url}/metrics",
        "--canary-url": f"{url}/v1/completions",
    }


def test_several_cards_are_one_engine_of_several_processes() -> None:
    (one,) = decide(asked(1, tensor_parallel=2), fleet()).of
    assert "--tensor-parallel-size 2 --distributed-executor-backend mp" in " ".join(
        one.node.command
    )
    assert one.node.cards == (0, 1)


def test_those_that_share_a_card_divide_its_memory() -> None:
    found = fleet(bare("gpu-01", "10.0.0.1", head=True, cards=cards(1)))
    of = decide(asked(2, per_card=2, gpu_memory_utilization=0.9), found).of
    assert [one.node.command[-1] for one in of] == ["0.45", "0.45"]


def test_without_cards_they_divide_the_hosts_memory() -> None:
    report = CardReport(vendor="cpu", host_memory_mib=16_000)
    found = fleet(bare("gpu-01", "10.0.0.1", head=True, cards=report))
    (first, second) = decide(asked(2), found).of
    assert [one.node.command[-1] for one in (first, second)] == ["0.48", "0.48"]
    assert first.node.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_what_is_stored_is_read_again_as_it_was() -> None:
    (one,) = decide(asked(1, arguments=("--enforce-eager",)), fleet()).of
    said = f"\n@@service@@m-1.json\n{one.file.content().decode()}"
    again = stored("/x").parse(Result(0, said))["m-1"].service
    assert again is not None
    assert (slot_of(again), asked_of(again)) == (
        one.slot,
        asked(1, arguments=("--enforce-eager",)),
    )
    assert instances_of(kept(decide(asked(3), fleet())))[2].name == "m-3"


def test_the_same_wish_again_is_the_same_and_one_more_leaves_the_others_alone() -> None:
    first = decide(asked(2), fleet())
    found = fleet(stored=kept(first))
    again = decide(asked(2), found)
    assert [one.file.content() for one in again.of] == [one.file.content() for one in first.of]
    more = decide(asked(3), found)
    assert [one.file.content() for one in more.of[:2]] == [one.file.content() for one in first.of]
    assert str(more.of[2].slot) == "instance 3: gpu-01, card 1, port 8002"


def test_a_stored_instance_keeps_its_card_while_it_does_not_run() -> None:
    found = fleet(bare("gpu-01", "10.0.0.1", head=True), stored=kept(decide(asked(1), fleet())))
    (refusal,) = refusals(asked(2, name="other"), found)
    assert refusal == (
        "  2 instances of 1 card each need 2 free cards; there is room for 1"
        " (gpu-01: 1 of 2 free (card 0: instance m-1))"
    )


def test_cards_of_rays_instances_and_strangers_are_named() -> None:
    report = cards(3)
    busy = replace(report.cards[2], processes=(CardProcess(pid=77, name="python"),))
    host = bare(
        "gpu-01",
        "10.0.0.1",
        head=True,
        cards=replace(report, cards=(*report.cards[:2], busy)),
        containers=(instance("vllm-instance-x-1", 0),),
    )
    (refusal,) = refusals(asked(2), fleet(host))
    assert "card 0: vllm-instance-x-1, card 2: python (pid 77)" in refusal


def test_ports_are_never_shared_with_the_gateway_ray_a_service_or_a_stranger() -> None:
    host = bare(
        "gpu-01",
        "10.0.0.1",
        head=True,
        listeners=(Listener(port=8002, pid=5, program="nginx"),),
    )
    found = fleet(host, services=(replace(service("s", port=8003), head="gpu-01"),))
    found = replace(found, members=(found.members[0],))
    wish = asked(2, ports=(8000, 8002))
    assert refusals(wish, found) == [
        "  gpu-01: port 8000 is the gateway's (API_PORT)",
        "  gpu-01: port 8002 is taken by nginx (pid 5) (not ended: it is not ours)",
    ]
    assert refusals(replace(wish, ports=(8265, 8003)), found) == [
        "  gpu-01: port 8265 is one of Ray's (choose others in config.env)",
        "  gpu-01: port 8003 is that of s",
    ]


def test_a_model_that_is_too_large_for_its_cards_says_the_arithmetic() -> None:
    large = replace(MODEL, weights=200 << 30)
    (refusal,) = refusals(asked(1), fleet(models={"gpu-01": large, "gpu-02": large}))
    assert "gpu-01: the weights and what vLLM needs beside them leave no room" in refusal
    assert "(200.0 GiB of it weights)" in refusal
    assert "GPU_MEMORY_UTILIZATION gives 0.96 of 139.8 GiB, 134.2 GiB" in refusal


def test_more_weights_than_a_host_has_memory_says_the_arithmetic() -> None:
    report = CardReport(vendor="cpu", host_memory_mib=4096)
    host = bare("gpu-01", "10.0.0.1", head=True, cards=report)
    model = replace(MODEL, weights=3 << 30)
    assert refusals(asked(2), fleet(host, models={"gpu-01": model})) == [
        "  gpu-01: 2 instances of 3.0 GiB of weights each are 6.0 GiB; the host has 4.0 GiB"
    ]


def test_every_reason_is_said_at_once() -> None:
    found = fleet(
        models={"gpu-01": MODEL, "gpu-02": FoundModel()},
        vllm={"gpu-01": Vllm(version="0.17.0"), "gpu-02": Vllm(problem="there is no vLLM")},
    )
    wish = asked(9, tensor_parallel=3, name="a b", arguments=("--port=1", "--max-modl-len=3"))
    assert refusals(wish, found) == [
        "  'a b' cannot be the name of instances: letters, digits, '.', '_' and '-' only,"
        " 100 at most, a letter or digit first",
        "  gpu-02: model /data/models/m: not there",
        "  bring it to every host with: vllmdeploy model sync m",
        "  8 attention heads cannot be divided by tensor parallel size 3",
        "  --port is not given here: use ENGINE_PORTS, or API_PORT for the gateway",
        "  vLLM 0.17.0 has no --max-modl-len",
        "  gpu-02: there is no vLLM",
        "  9 instances of 3 cards each need 27 free cards; there is room for 0"
        " (gpu-01: 2 of 2 free; gpu-02: 2 of 2 free)",
    ]


def test_other_settings_and_fewer_instances_are_other_commands() -> None:
    found = fleet(stored=kept(decide(asked(2), fleet())))
    assert refusals(asked(2, max_num_seqs=12), found) == [
        "  m has instances with other settings: `vllmdeploy instances restart m` takes other"
        " settings over"
    ]
    assert refusals(asked(1), found) == [
        "  2 instances of m are there, 1 are wanted: `vllmdeploy instances stop m --number N`"
        " ends one"
    ]


def test_a_service_that_is_called_as_an_instance_would_be_is_in_the_way() -> None:
    (refusal,) = refusals(asked(1), fleet(services=(service("m-1"),)))
    assert refusal == "  a service is called m-1, as an instance would be: say --name"


def test_outside_docker_they_run_by_the_hosts_own_interpreter() -> None:
    what = wanted(runtime="systemd", python="/opt/v/bin/python")
    (one,) = decide(asked(1), fleet(what=what), what).of
    assert one.node.command[0] == "/opt/v/bin/python"
