from __future__ import annotations

import pytest

from tests.accelerators.answering import answered, hung
from vllmdeploy.accelerators.handing import by_cdi, process_environment
from vllmdeploy.accelerators.nvidia import ACCELERATOR, newest_cuda
from vllmdeploy.core.card import Card, CardProcess, CardReport, ContainerAccess, Fabric
from vllmdeploy.core.command import Result

A6000 = """\
index, name, memory.total [MiB], memory.used [MiB], memory.free [MiB], utilization.gpu [%]
0, NVIDIA RTX A6000, 49140 MiB, 35 MiB, 48507 MiB, 0 %
1, NVIDIA RTX A6000, 49140 MiB, 20 MiB, 48521 MiB, 0 %
"""
RTX3090 = """\
index, name, driver_version, temperature.gpu, utilization.gpu [%], utilization.memory [%], \
memory.total [MiB], memory.used [MiB]
0, NVIDIA GeForce RTX 3090, 515.65.01, 42, 1 %, 13 %, 24576 MiB, 963 MiB
1, NVIDIA GeForce RTX 3090, 515.65.01, 37, 0 %, 0 %, 24576 MiB, 1 MiB
"""
H200 = """\
index, name, memory.total [MiB], memory.used [MiB], driver_version
0, NVIDIA H200 NVL, 143771 MiB, 88759 MiB, 580.173.02
1, NVIDIA H200 NVL, 143771 MiB, 61807 MiB, 580.173.02
"""
# Captured without an index: such rows are left out, not guessed.
A4000 = """\
name, memory.total [MiB], memory.used [MiB], memory.free [MiB], driver_version, pstate, \
temperature.gpu
NVIDIA RTX A4000, 15352 MiB, 1 MiB, 15089 MiB, 535.183.06, P8, 28
"""
LAPTOP = """\
index, name, memory.total [MiB], memory.used [MiB], driver_version, temperature.gpu, power.limit [W]
0, NVIDIA GeForce RTX 4060 Laptop GPU, 8188 MiB, 1048 MiB, 566.26, 39, [N/A]
"""
HEADER = (
    "index, uuid, name, pci.bus_id, memory.total [MiB], memory.used [MiB], utilization.gpu [%], "
    "temperature.gpu, compute_mode, mig.mode.current, driver_version\n"
)
UUID = "GPU-78073210-c690-bb74-d538-87bba36db45d"


def parse(result: Result) -> CardReport:
    return ACCELERATOR.cards.parse(result)


def row(**changes: str) -> str:
    values = {
        "index": "0",
        "uuid": UUID,
        "name": "NVIDIA H100 80GB HBM3",
        "bus": "00000000:18:00.0",
        "total": "81559",
        "used": "4",
        "busy": "0",
        "temperature": "31",
        "mode": "Default",
        "mig": "Disabled",
        "driver": "550.54.15",
    }
    return HEADER + ", ".join({**values, **changes}.values()) + "\n"


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        (A6000, [("NVIDIA RTX A6000", 49140, 35), ("NVIDIA RTX A6000", 49140, 20)]),
        (RTX3090, [("NVIDIA GeForce RTX 3090", 24576, 963), ("NVIDIA GeForce RTX 3090", 24576, 1)]),
        (H200, [("NVIDIA H200 NVL", 143771, 88759), ("NVIDIA H200 NVL", 143771, 61807)]),
        (LAPTOP, [("NVIDIA GeForce RTX 4060 Laptop GPU", 8188, 1048)]),
        (A4000, []),
    ],
)
def test_captured_tables_are_read(text: str, cards: list[tuple[str, int, int]]) -> None:
    report = parse(answered(cards=text))
    read = [(card.name, card.memory_total_mib, card.memory_used_mib) for card in report.cards]
    assert read == cards


def test_a_full_answer_with_processes_becomes_cards() -> None:
    processes = (
        "gpu_uuid, pid, process_name, used_gpu_memory [MiB]\n"
        f"{UUID}, 45865, nvidia-cuda-mps-server, 418 MiB\n"
        f"{UUID}, 512, /opt/run, with a comma, [N/A]\n"
    )
    assert parse(answered(cards=row(), slices="", processes=processes)) == CardReport(
        vendor="nvidia",
        driver_version="550.54.15",
        cards=(
            Card(
                index=0,
                name="NVIDIA H100 80GB HBM3",
                uuid=UUID,
                bus_id="0000:18:00.0",
                memory_total_mib=81559,
                memory_used_mib=4,
                utilisation_percent=0,
                temperature_c=31,
                processes=(
                    CardProcess(pid=45865, name="nvidia-cuda-mps-server", memory_mib=418),
                    CardProcess(pid=512, name="/opt/run, with a comma"),
                ),
            ),
        ),
    )


def test_what_the_tool_does_not_say_is_unknown_and_not_zero() -> None:
    unified = row(total="[N/A]", used="[N/A]", busy="[N/A]", temperature="[Not Supported]")
    (card,) = parse(answered(cards=unified)).cards
    assert (card.memory_total_mib, card.memory_used_mib) == (None, None)
    assert (card.utilisation_percent, card.temperature_c, card.problem) == (None, None, "")


@pytest.mark.parametrize("name", ["GRID A100-10C", "NVIDIA A100-40C", "NVIDIA H100 MIG 1g.20gb"])
def test_vgpu_and_mig_names_are_names(name: str) -> None:
    assert [card.name for card in parse(answered(cards=row(name=name))).cards] == [name]


def test_a_card_cut_into_slices_is_named_with_its_slices_and_left_alone() -> None:
    listed = (
        f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})\n"
        "  MIG 1g.20gb     Device  0: (UUID: MIG-667481b3-0000-5000-8000-000000000001)\n"
    )
    (card,) = parse(answered(cards=row(mig="Enabled"), slices=listed)).cards
    assert card.problem == (
        "in MIG mode, and only whole cards are planned "
        "(its slices: 1g.20gb MIG-667481b3-0000-5000-8000-000000000001)"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (row(used="[GPU is lost]"), "nvidia-smi shows an error state: GPU is lost"),
        (row(temperature="[Unknown Error]"), "nvidia-smi shows an error state: Unknown Error"),
        (
            row(mode="Prohibited"),
            "compute mode is Prohibited; allow it with: nvidia-smi -i 0 -c DEFAULT",
        ),
    ],
)
def test_a_card_in_a_bad_state_says_why(text: str, problem: str) -> None:
    assert [card.problem for card in parse(answered(cards=text)).cards] == [problem]


def test_a_lost_card_is_reported_beside_the_others() -> None:
    lost = "Unable to determine the device handle for GPU 0000:65:00.0: GPU is lost."
    report = parse(answered(cards=f"{lost}\n{row()}"))
    assert (len(report.cards), report.problem) == (1, lost)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (
            answered(cards=("sh: 4: nvidia-smi: not found", 127)),
            "nvidia-smi was not found on this host: is the vendor's driver installed?",
        ),
        (hung(), "nvidia-smi gave no answer in time: the driver may hang (see dmesg)"),
        (
            answered(cards=("NVIDIA-SMI has failed because it couldn't communicate", 9)),
            "nvidia-smi failed (exit 9): NVIDIA-SMI has failed because it couldn't communicate",
        ),
        (
            answered(cards="Traceback (most recent call last):\n  File x\nValueError: no"),
            "nvidia-smi crashed: ValueError: no",
        ),
        (
            answered(cards="未找到设备"),
            "nvidia-smi answered something unexpected: 未找到设备",
        ),
        (
            answered(cards='{"gpu": [{"ind'),
            'nvidia-smi answered something unexpected: {"gpu": [{"ind',
        ),
        (answered(cards=""), "nvidia-smi answered nothing"),
        (
            Result(255, "", "bash: fork: no memory"),
            "nvidia-smi was not asked: bash: fork: no memory",
        ),
    ],
)
def test_every_bad_answer_is_worded_for_a_person(result: Result, problem: str) -> None:
    assert parse(result) == CardReport(vendor="nvidia", problem=problem)


def test_when_only_the_process_list_hangs_the_cards_are_still_there() -> None:
    said = answered(cards=row(), slices="").stdout + "@@ processes\n"
    report = parse(Result(124, said, timed_out=True))
    assert len(report.cards) == 1
    assert report.problem == "nvidia-smi did not say in time which processes hold the cards"


CARDS = (Card(index=0), Card(index=1), Card(index=3))


@pytest.mark.parametrize(
    ("cards", "all_of_them", "arguments"),
    [
        (CARDS, True, ("--gpus", "all")),
        (CARDS, False, ("--gpus", '"device=0,1,3"')),
        (CARDS[:1], False, ("--gpus", '"device=0"')),
        ((), False, ()),
    ],
)
def test_the_container_gets_all_cards_or_a_quoted_list(
    cards: tuple[Card, ...], all_of_them: bool, arguments: tuple[str, ...]
) -> None:
    assert ACCELERATOR.container(cards, all_of_them).arguments == arguments


def test_a_container_without_cards_sees_none_even_under_the_nvidia_runtime() -> None:
    assert ACCELERATOR.container((), False) == ContainerAccess(
        environment={"NVIDIA_VISIBLE_DEVICES": "void"}
    )


def test_a_hostile_uuid_cannot_widen_the_request() -> None:
    hostile = Card(index=1, uuid='x","capabilities=compute', name="$(reboot)")
    assert ACCELERATOR.container((hostile,), False).arguments == ("--gpus", '"device=1"')
    (card,) = parse(answered(cards=row(uuid="GPU-1 --privileged"))).cards
    assert card.uuid == ""


def test_the_same_cards_by_cdi_names() -> None:
    assert by_cdi(ACCELERATOR, CARDS[:2], False) == ContainerAccess(
        arguments=("--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=1"),
        environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )
    assert by_cdi(ACCELERATOR, CARDS, True).arguments == ("--device", "nvidia.com/gpu=all")


def test_an_engine_outside_a_container_is_limited_by_the_variable() -> None:
    assert process_environment(ACCELERATOR, CARDS[1:]) == {"CUDA_VISIBLE_DEVICES": "1,3"}


def test_the_fabric_becomes_exact_names() -> None:
    fabric = Fabric(ip="10.0.0.1", interface="eth1", rdma_devices=("mlx5_0", "mlx5_1"))
    assert ACCELERATOR.network_environment(fabric) == {
        "GLOO_SOCKET_IFNAME": "eth1",
        "TP_SOCKET_IFNAME": "eth1",
        "NCCL_SOCKET_IFNAME": "=eth1",
        "NCCL_IB_HCA": "=mlx5_0,mlx5_1",
    }
    assert ACCELERATOR.network_environment(Fabric(ip="10.0.0.1")) == {}


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.173.02", "13.0"),
        ("566.26", "12.7"),
        ("535.183.06", "12.2"),
        ("515.65.01", "11.7"),
        ("390.157", ""),
        ("620.10", ""),
        ("", ""),
        ("N/A", ""),
    ],
)
def test_a_driver_limits_cuda(driver: str, cuda: str) -> None:
    assert newest_cuda(driver) == cuda


def test_ray_is_told_the_number() -> None:
    assert ACCELERATOR.ray_flags(2) == ("--num-gpus=2",)
