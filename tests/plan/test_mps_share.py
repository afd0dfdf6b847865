"""Several engines on one card: the arithmetic, and what a container gets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.builders import bare, wanted
from vllmdeploy.accelerators import registry
from vllmdeploy.core.card import Card
from vllmdeploy.core.spec import MpsDoor, NodeSpec
from vllmdeploy.plan import mps_share
from vllmdeploy.plan.cards import RayShare
from vllmdeploy.plan.mps_share import divided
from vllmdeploy.plan.network import Place
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.supervise import InDocker

CARD = Card(index=3, uuid="GPU-3", memory_total_mib=81_559)


@given(workers=st.integers(1, 48), total=st.floats(0.05, 1.0))
def test_shares_never_exceed_what_the_card_is_allowed(workers: int, total: float) -> None:
    share = divided(workers, total)
    assert share.utilisation * workers <= total + 1e-4
    assert share.utilisation * workers > total - 1.1e-3 * workers


def test_the_arithmetic_is_printed() -> None:
    assert mps_share.arithmetic(divided(2, 0.9), 0.9, [CARD, CARD]) == (
        "2 engines on a card of 81,559 MiB: 0.9 x 81,559 = 73,403 MiB in all, / 2 = 36,701 MiB"
        " each (--gpu-memory-utilization 0.45)",
    )
    fixed = divided(3, 0.9, cache_bytes=4 << 30)
    assert mps_share.arithmetic(fixed, 0.9, [CARD]) == (
        "3 engines on a card of 81,559 MiB: 3 x 4.00 GiB = 12.00 GiB of KV cache, weights beside"
        " that (--kv-cache-memory-bytes)",
    )


def test_engines_that_share_a_card_do_without_custom_all_reduce() -> None:
    assert divided(1, 0.9).engine_arguments == ()
    assert divided(2, 0.9).engine_arguments == ("--disable-custom-all-reduce",)
    assert divided(2, 0.9, cache_bytes=1 << 30).engine_arguments == (
        *("--disable-custom-all-reduce", "--kv-cache-memory-bytes", "1073741824"),
    )


@pytest.mark.parametrize(
    ("workers", "asked", "percent"), [(1, None, None), (2, None, None), (4, None, 50), (4, 25, 25)]
)
def test_threads_are_twice_the_even_share_unless_asked(
    workers: int, asked: int | None, percent: int | None
) -> None:
    assert divided(workers, 0.9, percentage=asked).percentage == percent


def test_too_many_engines_for_a_card_are_refused_with_the_arithmetic() -> None:
    many = divided(64, 0.9, cache_bytes=4 << 30)
    assert list(mps_share.refusals(many, 0.9, [CARD])) == [
        "64 engines on a card get 0.9 / 64 = 0.014 of its memory each: too little for any model",
        "64 engines on a card: MPS takes at most 48 clients",
        "card 3: 64 KV caches of 4,294,967,296 bytes are 262,144 MiB, and it has 81,559 MiB",
    ]
    assert list(mps_share.refusals(divided(2, 0.9), 0.9, [CARD])) == []


def test_an_engine_of_several_cards_uses_the_daemon_of_the_host() -> None:
    assert mps_share.door("/p", "/l", [CARD]) == MpsDoor(pipe="/p/card-3", log="/l/card-3")
    assert mps_share.door("/p", "/l", [CARD, CARD]) == MpsDoor(pipe="/p", log="/l")


def test_a_partition_takes_the_place_of_the_percentage() -> None:
    door, share = MpsDoor(pipe="/p", log="/l"), divided(4, 0.9)
    folders = {"CUDA_MPS_PIPE_DIRECTORY": "/p", "CUDA_MPS_LOG_DIRECTORY": "/l"}
    assert mps_share.environment(door, share) == {
        **folders,
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50",
    }
    assert mps_share.environment(door, share, partition="GPU-3/Dx") == {
        **folders,
        "CUDA_MPS_SM_PARTITION": "GPU-3/Dx",
    }


def test_outside_containers_cards_are_numbered_as_the_daemon_does() -> None:
    others = [replace(CARD, index=index) for index in (2, 3, 5)]
    assert mps_share.visible([CARD], [CARD]) == "0"
    assert mps_share.visible([CARD, others[2]], others) == "1,2"


@pytest.mark.parametrize(
    ("arguments", "uid"),
    [
        ((), 0),
        (("--user", "2000:0"), 2000),
        (("--user=1000",), 1000),
        (("-u", "vllm"), None),
        (("--privileged",), 0),
    ],
)
def test_who_the_engines_run_as_is_read_from_the_arguments(
    arguments: tuple[str, ...], uid: int | None
) -> None:
    assert mps_share.container_uid(arguments) == uid


def made(door: MpsDoor | None) -> tuple[str, ...]:
    host = bare("gpu-01", "10.0.0.1")
    member = Member(
        found=host,
        accelerator=registry.named("nvidia"),
        share=RayShare(cards=(CARD,), declared=1, all_of_them=False),
        place=Place(ip="10.0.0.1"),
        head=Place(ip="10.0.0.1"),
        token=False,
    )
    node = NodeSpec(
        name="vllm-instance-m-1",
        cluster="vllm",
        group="default",
        role="instance",
        host="gpu-01",
        ip="10.0.0.1",
        command=("python3",),
        mps=door,
    )
    return InDocker().make(wanted(), member, node).command.argv


def test_a_container_shares_ipc_and_pipes_with_the_daemon_only_where_a_card_is_shared() -> None:
    plain = made(None)
    shared = made(MpsDoor(pipe="/tmp/nvidia-mps/card-3", log="/tmp/nvidia-log/card-3"))
    more = [word for word in shared if word not in plain and "fingerprint" not in word]
    assert more == [
        "vllmdeploy.mps=/tmp/nvidia-mps/card-3",
        "/tmp/nvidia-mps/card-3:/tmp/nvidia-mps/card-3",
        "/tmp/nvidia-log/card-3:/tmp/nvidia-log/card-3",
        "--ipc=host",
    ]
    assert not [word for word in plain if "mps" in word or word == "--ipc=host"]
