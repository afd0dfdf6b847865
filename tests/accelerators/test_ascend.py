from __future__ import annotations

import pytest

from tests.accelerators.answering import answered, hung
from vllmdeploy.accelerators.ascend import ACCELERATOR
from vllmdeploy.accelerators.registry import PRESENCE, choose
from vllmdeploy.core.card import Card, CardProcess, CardReport, Fabric
from vllmdeploy.core.command import Result

FRAME = "+---------------------------+---------------+-------------------------------------------+"
B4 = f"""\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.5.2                   Version: 25.5.2                                               |
{FRAME}
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 5     910B4               | OK            | 89.9        39                0    / 0             |
| 0                         | 0000:41:00.0  | 0           0    / 0          2922 / 32768         |
+===========================+===============+====================================================+
{FRAME}
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 5       0                 | 812345        | python3                  | 56621                   |
"""
A3 = """\
| 0     Ascend910           | OK            | 178.9       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3412 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          41697/ 65536         |
"""
P310 = """\
| 0       310P3     | OK              | 16.2         42                0    / 0              |
| 0       0         | 0000:86:00.0    | 0            994  / 21534                            |
"""


def parse(result: Result) -> CardReport:
    return ACCELERATOR.cards.parse(result)


def test_a_910b4_with_its_process() -> None:
    assert parse(answered(cards=B4, nodes="5")) == CardReport(
        vendor="ascend",
        driver_version="25.5.2",
        cards=(
            Card(
                index=5,
                name="910B4",
                bus_id="0000:41:00.0",
                memory_total_mib=32768,
                memory_used_mib=2922,
                utilisation_percent=0,
                temperature_c=39,
                processes=(CardProcess(pid=812345, name="python3", memory_mib=56621),),
                nodes=("/dev/davinci5",),
            ),
        ),
    )


def test_two_chips_of_one_card_are_two_cards_by_physical_id() -> None:
    cards = parse(answered(cards=A3, nodes="0 1")).cards
    assert [
        (card.index, card.nodes, card.memory_used_mib, card.temperature_c) for card in cards
    ] == [
        (0, ("/dev/davinci0",), 3412, 36),
        (1, ("/dev/davinci1",), 41697, 36),
    ]


def test_a_310p_has_its_memory_in_the_other_column_and_needs_flags() -> None:
    cards = parse(answered(cards=P310)).cards
    assert [(card.name, card.memory_used_mib, card.memory_total_mib) for card in cards] == [
        ("310P3", 994, 21534)
    ]
    assert ACCELERATOR.engine_flags(cards) == ("--enforce-eager", "--dtype", "float16")
    assert ACCELERATOR.engine_flags(parse(answered(cards=B4)).cards) == ()


def test_where_the_tool_does_not_say_the_physical_id_the_nodes_do() -> None:
    two = B4.replace("| 5     910B4 ", "| 2     910B4 ", 1)
    assert [card.index for card in parse(answered(cards=two, nodes="7\n")).cards] == [7]
    assert [card.index for card in parse(answered(cards=two, nodes="")).cards] == [2]


def test_a_sick_chip_says_so() -> None:
    (card,) = parse(answered(cards=B4.replace("| OK            |", "| Alarm         |"))).cards
    assert card.problem == "npu-smi says: health Alarm"
    (warned,) = parse(answered(cards=B4.replace("| OK            |", "| Warning       |"))).cards
    assert warned.problem == ""


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (
            answered(cards=("sh: npu-smi: not found", 127)),
            "npu-smi was not found on this host: is the vendor's driver installed?",
        ),
        (hung(), "npu-smi gave no answer in time: the driver may hang (see dmesg)"),
        (
            answered(cards=("dcmi model initialized failed, because the device is used.", 255)),
            "npu-smi failed (exit 255): dcmi model initialized failed, because the device is used.",
        ),
        (answered(cards=B4[:300]), f"npu-smi answered something unexpected: {B4.split()[0]}"),
    ],
)
def test_bad_answers_are_worded(result: Result, problem: str) -> None:
    assert parse(result).problem == problem


def test_the_management_controllers_display_is_not_a_card() -> None:
    display = "pci 0000:02:00.0 0x19e5 0x030000 0x1711 - - - /dev/dri/card0"
    chip = "pci 0000:41:00.0 0x19e5 0x120000 0xd802 - - -"
    assert choose(PRESENCE.parse(answered(pci=display, nodes=""))).vendor == "cpu"
    choice = choose(
        PRESENCE.parse(answered(pci=f"{display}\n{chip}", nodes="/dev/davinci_manager"))
    )
    assert (choice.vendor, len(choice.devices)) == ("ascend", 1)


def test_the_container_gets_the_chosen_chips_by_physical_id() -> None:
    cards = (Card(index=5, nodes=("/dev/davinci5",)), Card(index=6, name="$(reboot)"))
    assert ACCELERATOR.container(cards, False).arguments == (
        *("--device", "/dev/davinci5", "--device", "/dev/davinci6"),
        *("--device", "/dev/davinci_manager", "--device", "/dev/devmm_svm"),
        *("--device", "/dev/hisi_hdc"),
        *("--mount", "type=bind,source=/usr/local/dcmi,target=/usr/local/dcmi,readonly"),
        "--mount",
        "type=bind,source=/usr/local/Ascend/driver/lib64,"
        "target=/usr/local/Ascend/driver/lib64,readonly",
        "--mount",
        "type=bind,source=/usr/local/Ascend/driver/version.info,"
        "target=/usr/local/Ascend/driver/version.info,readonly",
        "--mount",
        "type=bind,source=/usr/local/Ascend/driver/tools/hccn_tool,"
        "target=/usr/local/Ascend/driver/tools/hccn_tool,readonly",
        "--mount",
        "type=bind,source=/etc/ascend_install.info,target=/etc/ascend_install.info,readonly",
    )


def test_ray_counts_them_under_their_own_name() -> None:
    assert ACCELERATOR.ray_flags(2) == ('--resources={"NPU": 2}',)
    assert ACCELERATOR.ray_flags(0) == ('--resources={"NPU": 0}',)


def test_hccl_gets_the_address_and_the_exact_interface() -> None:
    assert ACCELERATOR.network_environment(Fabric(ip="10.0.0.1", interface="eth0")) == {
        "HCCL_IF_IP": "10.0.0.1",
        "HCCL_SOCKET_IFNAME": "=eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
    }
