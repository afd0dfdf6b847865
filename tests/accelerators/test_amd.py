from __future__ import annotations

import pytest

from tests.accelerators.answering import answered
from vllmdeploy.accelerators.amd import ACCELERATOR
from vllmdeploy.accelerators.registry import PRESENCE, choose
from vllmdeploy.core.card import Card, CardProcess, CardReport
from vllmdeploy.core.command import Result

# Captured on an MI300X node, ROCm 7.2.1.
METRIC = """\
{"gpu_data":[{"gpu":0,"usage":{"gfx_activity":{"value":94,"unit":"%"},"umc_activity":{"value":61,
"unit":"%"},"mm_activity":"N/A"},"power":{"socket_power":{"value":612,"unit":"W"},
"gfx_voltage":"N/A"},"mem_usage":{"total_vram":{"value":196592,"unit":"MB"},
"used_vram":{"value":17153,"unit":"MB"}}},{"gpu":1,"usage":{"gfx_activity":{"value":0,"unit":"%"},
"umc_activity":"N/A"},"power":{"socket_power":"N/A"},"mem_usage":{"total_vram":{"value":196592,
"unit":"MB"},"used_vram":{"value":284,"unit":"MB"}}}]}
"""
OLDER_METRIC = """\
[{"gpu":0,"usage":{"gfx_activity":"N/A"},"temperature":{"hotspot":{"value":41,"unit":"C"}},
"mem_usage":{"total_vram":{"value":65520,"unit":"MB"},"used_vram":"N/A"}}]
"""
LIST = """\
[{"gpu":0,"bdf":"0000:0c:00.0","uuid":"c2ff748f-0000-1000-8017-1ff77417f1d6","kfd_id":27295,
"node_id":2,"partition_id":0}]
"""
STATIC = '[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X"}, "board": {}}]'
PROCESS = """\
[{"gpu":0,"process_list":[{"process_info":{"pid":100,"name":"python3",
"memory_usage":{"vram_mem":{"value":10485760}},"cu_occupancy":0}}]},
{"gpu":1,"process_list":[{"process_info":"No running processes detected"}]}]
"""
W7900 = """\
{"card0":{"Card series":"AMD Radeon PRO W7900","Unique ID":"0xabcdef123456","GPU use (%)":"68",
"GPU Memory Allocated (VRAM%)":"40","VRAM Total Memory (B)":"34359738368",
"VRAM Total Used Memory (B)":"13743895347","Temperature (Sensor edge) (C)":"59.0",
"Average Graphics Package Power (W)":"220.5","Fan Level":"45%","Performance Level":"auto"}}
"""
SPARSE = """\
{"card0":{"Average Graphics Package Power (W)":"43.5","GPU use (%)":"92",
"GPU Memory Allocated (VRAM%)":"2","GPU Memory Read/Write Activity (%)":"11",
"VRAM Total Memory (B)":"51522830336","VRAM Total Used Memory (B)":"1073741824"}}
"""
NO_AMD_SMI = ("sh: amd-smi: not found", 127)
SYS = "pci 0000:0c:00.0 0x1002 0x120000 0x74a1 - - - /dev/dri/card9 /dev/dri/renderD136"


def parse(result: Result) -> CardReport:
    return ACCELERATOR.cards.parse(result)


def test_the_newer_shape_with_all_its_companions() -> None:
    said = answered(
        pci=SYS, driver="6.12.12", cards=METRIC, list=LIST, static=STATIC, processes=PROCESS
    )
    assert parse(said) == CardReport(
        vendor="amd",
        driver_version="6.12.12",
        cards=(
            Card(
                index=0,
                name="AMD Instinct MI300X",
                uuid="c2ff748f-0000-1000-8017-1ff77417f1d6",
                bus_id="0000:0c:00.0",
                memory_total_mib=196592,
                memory_used_mib=17153,
                utilisation_percent=94,
                processes=(CardProcess(pid=100, name="python3", memory_mib=10),),
                nodes=("/dev/dri/card9", "/dev/dri/renderD136"),
            ),
            Card(index=1, memory_total_mib=196592, memory_used_mib=284, utilisation_percent=0),
        ),
    )


def test_the_older_bare_list() -> None:
    assert parse(answered(cards=OLDER_METRIC)).cards == (
        Card(index=0, memory_total_mib=65520, temperature_c=41),
    )


@pytest.mark.parametrize(
    ("text", "card"),
    [
        (
            W7900,
            Card(
                index=0,
                name="AMD Radeon PRO W7900",
                uuid="0xabcdef123456",
                memory_total_mib=32768,
                memory_used_mib=13107,
                utilisation_percent=68,
                temperature_c=59,
            ),
        ),
        (
            SPARSE,
            Card(index=0, memory_total_mib=49136, memory_used_mib=1024, utilisation_percent=92),
        ),
    ],
)
def test_where_there_is_only_rocm_smi_it_is_read(text: str, card: Card) -> None:
    assert parse(answered(cards=NO_AMD_SMI, rocm=text)) == CardReport(vendor="amd", cards=(card,))


def test_without_any_tool_sys_is_read() -> None:
    report = parse(answered(pci=SYS, cards=NO_AMD_SMI, rocm=("sh: rocm-smi: not found", 127)))
    assert report.problem == (
        "amd-smi was not found on this host: is the vendor's driver installed?"
        "; read from /sys: no names, no processes"
    )
    assert [card.bus_id for card in report.cards] == ["0000:0c:00.0"]


def test_the_failing_tools_text_is_not_a_card() -> None:
    text = 'Expected integer value from monitor, but got ""\nN/A None unknown Unsupported'
    assert parse(answered(cards=(text, 1))).problem == (
        "amd-smi failed (exit 1): N/A None unknown Unsupported"
    )


def test_half_of_an_answer_is_said() -> None:
    report = parse(answered(cards=METRIC[:420]))
    assert report.problem == "amd-smi stopped in the middle of its answer"
    assert [card.memory_total_mib for card in report.cards] == [196592, None]


def test_the_graphics_of_an_apu_are_not_a_card() -> None:
    apu = "pci 0000:04:00.0 0x1002 0x030000 0x1638 536870912 - - /dev/dri/card0"
    assert choose(PRESENCE.parse(answered(pci=apu, nodes="/dev/kfd"))).vendor == "cpu"


def test_an_nvidia_host_with_such_graphics_is_an_nvidia_host() -> None:
    both = (
        "pci 0000:04:00.0 0x1002 0x030000 0x1638 536870912 - -\n"
        "pci 0000:18:00.0 0x10de 0x030200 0x2330 - - -"
    )
    choice = choose(PRESENCE.parse(answered(pci=both, nodes="/dev/kfd\n/dev/nvidiactl")))
    assert (choice.vendor, choice.problem) == ("nvidia", "")


def test_two_vendors_with_drivers_need_a_word_from_the_user() -> None:
    both = (
        "pci 0000:04:00.0 0x1002 0x120000 0x74a1 - - -\n"
        "pci 0000:18:00.0 0x10de 0x030200 0x2330 - - -"
    )
    found = PRESENCE.parse(answered(pci=both, nodes="/dev/kfd\n/dev/nvidiactl"))
    assert choose(found).problem == (
        "cards of several vendors: NVIDIA (1) and AMD ROCm (1); "
        "say which with accelerator=nvidia or accelerator=amd on the host's line"
    )
    assert choose(found, wanted="amd").problem == ""


SECURITY = (
    *("--group-add", "video", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"),
)


def test_some_cards_are_handed_over_by_their_own_nodes() -> None:
    card = Card(index=4, nodes=("/dev/dri/card9", "/dev/dri/renderD136"))
    access = ACCELERATOR.container((card,), False)
    assert access.arguments == (
        *("--device", "/dev/kfd", "--device", "/dev/dri/card9", "--device", "/dev/dri/renderD136"),
        *SECURITY,
    )
    assert access.environment == {}


def test_cards_of_unknown_nodes_are_chosen_by_the_variable() -> None:
    hostile = Card(index=4, uuid="$(reboot)", name="--privileged")
    access = ACCELERATOR.container((hostile,), False)
    assert access.arguments == ("--device", "/dev/kfd", "--device", "/dev/dri", *SECURITY)
    assert access.environment == {"HIP_VISIBLE_DEVICES": "4"}
    assert ACCELERATOR.container((hostile,), True).environment == {}
