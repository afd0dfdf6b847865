from __future__ import annotations

import pytest

from tests.accelerators.answering import answered
from vllmdeploy.accelerators.hygon import ACCELERATOR
from vllmdeploy.accelerators.registry import PRESENCE, Choice, choose
from vllmdeploy.core.card import Card, CardProcess, CardReport, Fabric
from vllmdeploy.core.command import Result

# Captured on a loaded BW host: commas are missing after the power values, keys are empty.
MALFORMED = (
    '{"card0": {"Card Series": "BW", "Card Vendor": "C-3000 IC Design Co., Ltd.", "Average '
    'Graphics Package Power (W)": "91.0""Average GFX Core Power (W)": "20.0""Average Memory '
    'Power (W)": "38.0", "Temperature (Sensor edge) (C)": "54.0", "Temperature (Sensor '
    'junction) (C)": "57.0", "Temperature (Sensor mem) (C)": "51.0", "Temperature (Sensor '
    'core) (C)": "51.0", "HCU use (%)": "0.0", "HCU memory use (%)": "98", "Estimated '
    'maximum PCIe bandwidth over the last second (MB/s)": "0.061", "fclk clock level": "0", '
    '"fclk clock speed": "1390Mhz", "mclk clock level": "0", "mclk clock speed": "1800Mhz", '
    '"sclk clock level": "7", "sclk clock speed": "1350Mhz", "socclk clock level": "0", '
    '"socclk clock speed": "1079Mhz", "": "", "": "", "pcie clock level": "2", "pcie clock '
    'speed": "32.0GT/s, x16 1100Mhz", "vram Total Memory (MiB)": "65520", "vram Total Used '
    'Memory (MiB)": "64169"}, "card1": {"Card Series": "BW", "Card Vendor": "C-3000 IC '
    'Design Co., Ltd.", "Average Graphics Package Power (W)": "84.0""Average GFX Core Power '
    '(W)": "16.0""Average Memory Power (W)": "34.0", "Temperature (Sensor edge) (C)": '
    '"52.0", "Temperature (Sensor junction) (C)": "54.0", "Temperature (Sensor mem) (C)": '
    '"52.0", "Temperature (Sensor core) (C)": "50.0", "HCU use (%)": "0.0", "HCU memory use '
    '(%)": "98", "Estimated maximum PCIe bandwidth over the last second (MB/s)": "0.711", '
    '"fclk clock level": "0", "fclk clock speed": "1390Mhz", "mclk clock level": "0", "mclk '
    'clock speed": "1800Mhz", "sclk clock level": "7", "sclk clock speed": "1350Mhz", '
    '"socclk clock level": "0", "socclk clock speed": "1079Mhz", "": "", "": "", "pcie clock '
    'level": "2", "pcie clock speed": "32.0GT/s, x16 1100Mhz", "vram Total Memory (MiB)": '
    '"65520", "vram Total Used Memory (MiB)": "64104"}}'
)
OLDER = (
    '{"card1":{"HCU use (%)":7,"vram Total Memory (B)":"1073741824",'
    '"vram Total Used Memory (B)":"536870912","Temperature (Sensor core) (C)":"50.0"}}'
)
TABLE = """\
================================= System Management Interface ==================================
================================================================================================
HCU     Temp     AvgPwr     Perf     PwrCap     VRAM%      HCU%      Dec%      Enc%      Mode
0       50.0C    80.0W      auto     1000.0W    0%         0.0%      0.0%      0.0%      Normal
1       52.0C    89.0W      auto     1000.0W    0%         0.0%      0.0%      0.0%      MIG
================================================================================================
======================================== End of SMI Log ========================================
"""
OLD_TABLE = """\
HCU     Temp     AvgPwr     Perf     PwrCap     VRAM%      HCU%      Mode
2       57.0C    251.0W     manual   300.0W     40%        97.0%     Normal
"""
PIDS = """\
PIDs for KFD processes:

PID: 2004092
	PASID: 32770
	HCU Node(Include CPU sort): ['9']\x20
	HCU Index: ['1']\x20
	GPUID: ['34430']\x20
	PCI BUS: ['0000:0a:00.0']\x20
	VRAM USED(MiB): 9649
	VRAM USED(%): 15
	SDMA USED: 0
PID: 77
	HCU Index: ['0'] ['1']\x20
	VRAM USED(MiB): 12
PID: 78
	HCU Index:\x20
"""
TWO_CARDS_IN_SYS = """\
pci 0000:0a:00.0 0x1d94 0x120000 0x6320 68702699520 0 0 /dev/dri/card2 /dev/dri/renderD129
pci 0000:05:00.0 0x1d94 0x120000 0x6320 68702699520 0 0 /dev/dri/card1 /dev/dri/renderD128
"""


def parse(result: Result) -> CardReport:
    return ACCELERATOR.cards.parse(result)


def test_the_captured_malformed_json_is_read() -> None:
    assert parse(answered(cards=MALFORMED)) == CardReport(
        vendor="hygon",
        cards=(
            Card(
                index=0,
                name="BW",
                memory_total_mib=65520,
                memory_used_mib=64169,
                utilisation_percent=0,
                temperature_c=57,
            ),
            Card(
                index=1,
                name="BW",
                memory_total_mib=65520,
                memory_used_mib=64104,
                utilisation_percent=0,
                temperature_c=54,
            ),
        ),
    )


def test_half_of_it_gives_what_was_there_and_says_that_it_ended_early() -> None:
    report = parse(answered(cards=MALFORMED[: len(MALFORMED) * 3 // 4]))
    assert [(card.index, card.memory_total_mib) for card in report.cards] == [(0, 65520), (1, None)]
    assert report.problem == "hy-smi stopped in the middle of its answer"


def test_the_older_keys_with_numbers_and_bytes_are_read() -> None:
    assert parse(answered(cards=OLDER)).cards == (
        Card(
            index=1,
            memory_total_mib=1024,
            memory_used_mib=512,
            utilisation_percent=7,
            temperature_c=50,
        ),
    )


def test_without_json_the_table_is_read() -> None:
    report = parse(answered(cards=("error: unrecognized arguments", 2), table=TABLE))
    assert report == CardReport(
        vendor="hygon",
        cards=(
            Card(index=0, temperature_c=50, utilisation_percent=0),
            Card(
                index=1,
                temperature_c=52,
                utilisation_percent=0,
                problem="in MIG mode, and only whole cards are planned",
            ),
        ),
    )
    (old,) = parse(answered(cards=OLD_TABLE)).cards
    assert (old.index, old.temperature_c, old.utilisation_percent) == (2, 57, 97)


def test_a_process_is_on_every_card_that_it_holds() -> None:
    cards = parse(answered(cards=MALFORMED, processes=PIDS)).cards
    both = CardProcess(pid=77, memory_mib=12)
    assert [card.processes for card in cards] == [
        (both,),
        (CardProcess(pid=2004092, memory_mib=9649), both),
    ]


@pytest.mark.parametrize("text", ["PIDs for KFD processes:\n\n", "No KFD PIDs currently running!"])
def test_nobody_holds_anything(text: str) -> None:
    cards = parse(answered(cards=MALFORMED, processes=text)).cards
    assert [card.processes for card in cards] == [(), ()]


def test_a_host_without_the_tool_is_read_from_sys() -> None:
    report = parse(answered(pci=TWO_CARDS_IN_SYS, cards=("sh: hy-smi: not found", 127)))
    assert report.problem == (
        "hy-smi was not found on this host: is the vendor's driver installed?"
        "; read from /sys: no names, no processes"
    )
    assert [(card.bus_id, card.memory_total_mib, card.problem) for card in report.cards] == [
        ("0000:05:00.0", 65520, ""),
        ("0000:0a:00.0", 65520, ""),
    ]


def test_a_tool_that_hangs_leaves_cards_that_nobody_should_use() -> None:
    said = answered(pci=TWO_CARDS_IN_SYS).stdout + "@@ cards\n"
    cards = parse(Result(124, said, timed_out=True)).cards
    assert {card.problem for card in cards} == {
        "hy-smi gave no answer in time: the driver may hang (see dmesg)"
    }


def test_the_nodes_come_from_sys_in_the_order_of_addresses() -> None:
    cards = parse(answered(pci=TWO_CARDS_IN_SYS, driver="6.3.30", cards=MALFORMED)).cards
    assert [card.nodes for card in cards] == [
        ("/dev/dri/card1", "/dev/dri/renderD128"),
        ("/dev/dri/card2", "/dev/dri/renderD129"),
    ]


def test_a_card_that_calls_itself_a_bridge_is_found_and_the_processors_bridges_are_not() -> None:
    found = PRESENCE.parse(
        answered(
            pci="pci 0000:00:01.0 0x1d94 0x060400 0x1453 - - -\n"
            "pci 0000:18:00.0 0x1d94 0x060000 0x6210 - - - /dev/dri/card1 /dev/dri/renderD128",
            nodes="/dev/kfd\n/dev/mkfd",
        )
    )
    choice = choose(found)
    assert (choice.vendor, [device.address for device in choice.devices]) == (
        "hygon",
        ["0000:18:00.0"],
    )
    only_bridges = PRESENCE.parse(
        answered(pci="pci 0000:00:01.0 0x1d94 0x060400 0x1453 - - -", nodes="")
    )
    assert choose(only_bridges) == Choice(vendor="cpu")


ALL = (
    *("--device", "/dev/kfd", "--device", "/dev/mkfd", "--device", "/dev/dri"),
    *("--mount", "type=bind,source=/opt/hyhal,target=/opt/hyhal,readonly"),
    *("--group-add", "video", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"),
)


def test_the_container_gets_the_devices_and_never_rocr() -> None:
    cards = (Card(index=0), Card(index=3, uuid="; reboot", nodes=("--privileged",)))
    everything = ACCELERATOR.container(cards, True)
    some = ACCELERATOR.container(cards, False)
    assert (everything.arguments, everything.environment) == (ALL, {})
    assert (some.arguments, some.environment) == (ALL, {"HIP_VISIBLE_DEVICES": "0,3"})
    assert ACCELERATOR.container((), False).arguments == ()


def test_ray_and_the_fabric() -> None:
    assert ACCELERATOR.ray_flags(8) == ("--num-gpus=8",)
    assert ACCELERATOR.ray_environment["RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES"] == "1"
    fabric = Fabric(ip="10.0.0.1", interface="ens1", rdma_devices=("shca_0",))
    assert ACCELERATOR.network_environment(fabric) == {
        "GLOO_SOCKET_IFNAME": "ens1",
        "TP_SOCKET_IFNAME": "ens1",
        "NCCL_SOCKET_IFNAME": "=ens1",
        "NCCL_IB_HCA": "shca_0",
        "HSA_FORCE_FINE_GRAIN_PCIE": "1",
    }
    assert "NCCL_IB_HCA" not in ACCELERATOR.network_environment(Fabric(ip="10.0.0.1"))
