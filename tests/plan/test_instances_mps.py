"""Instances that share cards by MPS: specs, daemons, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import bare, cards, decided, lines, wanted
from vllmdeploy.core.plan import Draft
from vllmdeploy.core.spec import MpsDoor
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.instances_decide import Instances, decide_instances
from vllmdeploy.plan.instances_mps import Sharing, daemons
from vllmdeploy.plan.instances_wanted import FoundInstances, InstancesWanted, document
from vllmdeploy.plan.service_wanted import ServiceWanted
from vllmdeploy.tools.mps_found import Daemon, Mps
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_model import FoundModel

SHARING = Sharing(pipe="/tmp/nvidia-mps", log="/tmp/nvidia-log", uid=0)
FLAGS = frozenset(("--disable-custom-all-reduce", "--kv-cache-memory-bytes", "--port"))
CONFIG = json.dumps({"architectures": ["BertModel"]})


def found(mps: Mps = Mps(installed=True), **changes: Any) -> FoundInstances:  # noqa: B008 - frozen
    report = cards()
    uuids = tuple(replace(one, uuid=f"GPU-{one.index}") for one in report.cards)
    host = bare("gpu-01", "10.0.0.1", head=True, cards=replace(report, cards=uuids), **changes)
    (group,) = decided(wanted(), [host]).values()
    return FoundInstances(
        members=group.members,
        lead="gpu-01",
        vllm={"gpu-01": Vllm(version="0.33.0", serve=True, flags=FLAGS)},
        models={"gpu-01": FoundModel(there=True, digest="d", config=CONFIG, weights=1 << 30)},
        mps={"gpu-01": mps},
    )


def asked(per_card: int = 2, *, tensor: int = 1, **sharing: Any) -> InstancesWanted:
    return InstancesWanted(
        engine=ServiceWanted(model="m", tensor_parallel=tensor, gpu_memory_utilization=0.9),
        count=per_card,
        per_card=per_card,
        usual_ports=tuple(range(8001, 8099)),
        sharing=replace(SHARING, **sharing),
    )


def flags_of(it: Instances, number: int) -> list[str]:
    argv = list(it.of[number].file.argv)
    return argv[argv.index("--gpu-memory-utilization") :]


def test_two_on_a_card_divide_it_and_go_through_its_daemon() -> None:
    it = decide_instances(wanted(), asked(), found())
    assert [one.slot.cards for one in it.of] == [(0,), (0,)]
    for one in it.of:
        assert one.node.mps == MpsDoor(pipe="/tmp/nvidia-mps/card-0", log="/tmp/nvidia-log/card-0")
        assert one.node.environment["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/nvidia-mps/card-0"
        assert "CUDA_VISIBLE_DEVICES" not in one.node.environment
    assert flags_of(it, 0) == ["--gpu-memory-utilization", "0.45", "--disable-custom-all-reduce"]
    assert it.notes == (
        "gpu-01: 2 engines on a card of 143,771 MiB: 0.9 x 143,771 = 129,393 MiB in all, / 2 ="
        " 64,696 MiB each (--gpu-memory-utilization 0.45)",
    )


def test_one_alone_on_its_card_needs_no_daemon() -> None:
    it = decide_instances(wanted(), replace(asked(1), sharing=None), found())
    assert [one.node.mps for one in it.of] == [None]
    assert it.crowds == ()
    assert flags_of(it, 0) == ["--gpu-memory-utilization", "0.9"]


def test_the_daemon_starts_before_them_where_it_does_not_run() -> None:
    (crowd,) = decide_instances(wanted(), asked(), found()).crowds
    draft = Draft()
    keys = daemons(draft, crowd)
    assert keys == ("gpu-01: await MPS daemon of card 0",)
    assert lines(draft.finished()).splitlines()[2] == (
        "gpu-01: start MPS daemon of card 0 (engines will share its card)"
    )
    running = Daemon(pid=7, uid=0, pipe="/tmp/nvidia-mps/card-0", cards=("GPU-0",), mark="vllm")
    there = found(Mps(installed=True, daemons=(running,)))
    (crowd,) = decide_instances(wanted(), asked(), there).crowds
    assert daemons(Draft(), crowd) == ()


def test_engines_of_two_cards_share_the_daemon_of_the_host() -> None:
    it = decide_instances(wanted(), asked(tensor=2), found())
    assert {one.node.mps for one in it.of} == {
        MpsDoor(pipe="/tmp/nvidia-mps", log="/tmp/nvidia-log")
    }
    draft = Draft()
    assert daemons(draft, it.crowds[0]) == ("gpu-01: await MPS daemon of all cards",)


def test_static_partitions_are_given_one_each() -> None:
    daemon = Daemon(
        pid=7,
        uid=0,
        pipe="/tmp/nvidia-mps/card-0",
        cards=("GPU-0",),
        mark="vllm",
        static=True,
        partitions=("GPU-0/A", "GPU-0/B"),
    )
    there = found(Mps(installed=True, daemons=(daemon,)))
    it = decide_instances(wanted(), asked(), there)
    given = [one.node.environment["CUDA_MPS_SM_PARTITION"] for one in it.of]
    assert given == ["GPU-0/A", "GPU-0/B"]
    with pytest.raises(PreflightRefused) as refused:
        decide_instances(wanted(), asked(3), there)
    assert "has 2 static partitions for 3 engines" in str(refused.value)


def test_outside_containers_a_card_is_the_first_of_its_daemon() -> None:
    what = wanted(runtime="process", python="/opt/vllm/bin/python")
    report = found().members[0].found.cards
    busy = found(gpus=(1,))
    assert len(report.cards) == 2
    it = decide_instances(what, asked(), busy)
    assert [one.slot.cards for one in it.of] == [(1,), (1,)]
    assert {one.node.environment["CUDA_VISIBLE_DEVICES"] for one in it.of} == {"0"}


def test_what_keeps_them_from_sharing_is_refused_before_anything_starts() -> None:
    theirs = Daemon(pid=9, uid=1001, pipe="/run/mps")
    with pytest.raises(PreflightRefused) as refused:
        decide_instances(wanted(), asked(64), found(Mps(daemons=(theirs,))))
    text = str(refused.value)
    assert "gpu-01: there is no nvidia-cuda-mps-control" in text
    assert "an MPS daemon of uid 1001 (pid 9, /run/mps) is there already" in text
    assert "64 engines on a card get 0.9 / 64 = 0.014 of its memory each" in text


def test_a_cache_of_fixed_size_takes_the_place_of_a_share() -> None:
    it = decide_instances(wanted(), asked(cache_bytes=4 << 30, percentage=30), found())
    assert flags_of(it, 1)[2:] == [
        *("--disable-custom-all-reduce", "--kv-cache-memory-bytes", "4294967296"),
    ]
    assert it.of[1].node.environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"


def test_what_was_asked_is_kept_for_the_next_plan() -> None:
    wish = asked(percentage=30)
    it = decide_instances(wanted(), wish, found())
    kept = json.loads(json.dumps(document(wish, it.of[0].slot)))
    assert InstancesWanted.stored(kept["instances"]) == wish
