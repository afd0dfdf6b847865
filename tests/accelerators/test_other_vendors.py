from __future__ import annotations

import pytest

from tests.accelerators.answering import answered
from vllmdeploy.accelerators.registry import PRESENCE, VENDORS, choose
from vllmdeploy.core.card import Card, CardProcess, CardReport, Fabric

S5000 = """\
---------------------------------------------------------------------
    mthreads-gmi:2.4.1           Driver Version:5.1.0-server
---------------------------------------------------------------------
ID   Name                 |PCIe                |%GPU  Mem
     Device Type   Perf   |Pcie Lane Width     |Temp  MPC Capable
                                               |      ECC Mode
+-------------------------------------------------------------------+
0    MTT S5000            |00000000:18:00.0    |0%    0MiB(81920MiB)
     Physical      P0     |16x(16x)            |48C   YES
                                               |      On-die, EDC
"""
S80 = """\
0    MTT S80        |00000000:04:00.0    |0%    2MiB(16384MiB)
     Physical       |4x(16x)             |49C   YES
---------------------------------------------------------------
Processes:
ID   PID       Process name                         GPU Memory
                                                         Usage
+-------------------------------------------------------------+
0    1123      /usr/lib/xorg/Xorg                       134MiB
"""
C500 = """\
mx-smi  version: 2.3.1

=================== MetaX System Management Interface Log ===================
Timestamp                                         : Mon Sep  7 07:00:31 2026

Attached GPUs                                     : 1
+---------------------------------------------------------------------------------+
| MX-SMI 2.3.1                       Kernel Mode Driver Version: 3.8.30           |
| MACA Version: 3.7.1.5              BIOS Version: 1.33.5.0                       |
|------------------+-----------------+---------------------+----------------------|
| Board       Name | GPU   Persist-M | Bus-id              | GPU-Util      sGPU-M |
| Pwr:Usage/Cap    | Temp   Perf     | Memory-Usage        | GPU-State            |
|==================+=================+=====================+======================|
| 0     MetaX C500 | 0           Off | 0000:12:00.0        | 0%          Disabled |
| 37W / 350W       | 32C          P0 | 826/65536 MiB       | Available            |
+------------------+-----------------+---------------------+----------------------+
"""
OLDER_C500 = """\
| GPU         NAME                   | Bus-id              | GPU-Util             |
| Temp        Pwr:Usage/Cap          | Memory-Usage        | GPU-State            |
| 0           MetaX C500             | 0000:01:00.0        | 0%                   |
| 45C         48W / 350W             | 858/65536 MiB       | Available            |
"""
V150 = """\
Timestamp    Fri Dec 20 11:14:29 2024
+-----------------------------------------------------------------------------+
|  IX-ML: 4.1.0       Driver Version: 4.1.0       CUDA Version: 10.2          |
|-------------------------------+----------------------+----------------------|
| GPU  Name                     | Bus-Id               | Clock-SM  Clock-Mem  |
| Fan  Temp  Perf  Pwr:Usage/Cap|      Memory-Usage    | GPU-Util  Compute M. |
|===============================+======================+======================|
| 0    Iluvatar BI-V150         | 00000000:13:00.0     | 1500MHz   1600MHz    |
| 0%   32C   P0    N/A / N/A    | 116MiB / 32768MiB    | 0%        Default    |
| 1    Iluvatar BI-V150         | 00000000:16:00.0     | 1500MHz   1600MHz    |
| 0%   30C   P0    93W / 350W   | 116MiB / 32768MiB    | 0%        Default    |
| Processes:                                                       GPU Memory |
|  GPU        PID      Process name                                Usage(MiB) |
|  No running processes found                                                 |
"""
MLU370 = """\
| CNMON v5.10.13                                               Driver v5.10.13 |
| Card  VF  Name       Firmware |               Bus-Id | Util        Ecc-Error |
| Fan   Temp      Pwr:Usage/Cap |         Memory-Usage | SR-IOV   Compute-Mode |
| 0     /   MLU370-X8    v1.1.6 |         0000:39:00.0 | 0%                N/A |
|  0%   32C        106 W/ 250 W |     0 MiB/ 23374 MiB | N/A           Default |
|  0     /   12345   python train.py                          1024 MiB          |
"""
MLU220 = """\
| 0     /   MLU220-M2   v1.1.1 | On            v4.6.9 | 0%          N/A       |
|  0%   51C     3.70 W/ 8.25 W |   967 MiB/  4096 MiB | 10240 MiB/1048576 MiB |
"""
XPU = """\
{"device_list":[{"device_id":0,"device_name":"Intel(R) Graphics [0x020a]","device_type":"GPU",
"pci_bdf_address":"0000:4d:00.0","pci_device_id":"0x20a",
"uuid":"00000000-0000-0000-0000-020a00008086","vendor_name":"Intel(R) Corporation"}]}
"""


def parse(vendor: str, **said: str | tuple[str, int]) -> CardReport:
    return VENDORS[vendor].cards.parse(answered(**said))


@pytest.mark.parametrize(
    ("vendor", "text", "driver", "cards"),
    [
        (
            "mthreads",
            S5000,
            "5.1.0-server",
            [("MTT S5000", "0000:18:00.0", 0, 81920, 0, 48)],
        ),
        ("mthreads", S80, "", [("MTT S80", "0000:04:00.0", 2, 16384, 0, 49)]),
        ("metax", C500, "3.8.30", [("MetaX C500", "0000:12:00.0", 826, 65536, 0, 32)]),
        ("metax", OLDER_C500, "", [("MetaX C500", "0000:01:00.0", 858, 65536, 0, 45)]),
        (
            "iluvatar",
            V150,
            "4.1.0",
            [
                ("Iluvatar BI-V150", "0000:13:00.0", 116, 32768, 0, 32),
                ("Iluvatar BI-V150", "0000:16:00.0", 116, 32768, 0, 30),
            ],
        ),
        ("cambricon", MLU370, "5.10.13", [("MLU370-X8", "0000:39:00.0", 0, 23374, 0, 32)]),
        ("cambricon", MLU220, "", [("MLU220-M2", "", 967, 4096, 0, 51)]),
    ],
)
def test_captured_tables_are_read(
    vendor: str, text: str, driver: str, cards: list[tuple[object, ...]]
) -> None:
    report = parse(vendor, cards=text)
    assert report.driver_version == driver
    assert report.problem == ""
    assert [
        (
            card.name,
            card.bus_id,
            card.memory_used_mib,
            card.memory_total_mib,
            card.utilisation_percent,
            card.temperature_c,
        )
        for card in report.cards
    ] == cards


@pytest.mark.parametrize(
    ("vendor", "text", "process"),
    [
        ("mthreads", S80, CardProcess(pid=1123, name="/usr/lib/xorg/Xorg", memory_mib=134)),
        ("cambricon", MLU370, CardProcess(pid=12345, name="python train.py", memory_mib=1024)),
    ],
)
def test_processes_are_read(vendor: str, text: str, process: CardProcess) -> None:
    assert [card.processes for card in parse(vendor, cards=text).cards] == [(process,)]


def test_xpu_smi_names_the_cards_and_sys_their_memory() -> None:
    sys = "pci 0000:4d:00.0 0x8086 0x038000 0x020a - - - /dev/dri/card2 /dev/dri/renderD129"
    assert parse("intel", pci=sys, cards=XPU).cards == (
        Card(
            index=0,
            name="Intel(R) Graphics [0x020a]",
            uuid="00000000-0000-0000-0000-020a00008086",
            bus_id="0000:4d:00.0",
            nodes=("/dev/dri/card2", "/dev/dri/renderD129"),
        ),
    )


def test_xpu_smi_says_what_failed_in_json() -> None:
    report = parse("intel", cards='{"error": "Level Zero initialization failed"}')
    assert report == CardReport(vendor="intel", problem="xpu-smi: Level Zero initialization failed")


def test_an_intel_server_is_not_an_intel_gpu_host() -> None:
    lines = (
        "pci 0000:00:02.0 0x8086 0x030000 0x9a49 - - - /dev/dri/card0 /dev/dri/renderD128\n"
        "pci 0000:00:1f.0 0x8086 0x060100 0xa081 - - -\n"
        "pci 0000:03:00.0 0x8086 0x020000 0x1533 - - -"
    )
    found = PRESENCE.parse(answered(pci=lines, nodes="/dev/dri/renderD128"))
    assert choose(found).vendor == "cpu"
    card = "pci 0000:4d:00.0 0x8086 0x038000 0x0bd5 - - - /dev/dri/card1"
    found = PRESENCE.parse(answered(pci=f"{lines}\n{card}", nodes="/dev/dri/renderD128"))
    assert (choose(found).vendor, len(choose(found).devices)) == ("intel", 1)


def test_gaudi_cards_go_by_module_id() -> None:
    text = "0, 3, 0000:33:00.0, 512 MiB, 30 C\n1, 1, 0000:34:00.0, 768 MiB, 31 C\nwarning: x"
    assert parse("gaudi", cards=text).cards == (
        Card(index=3, name="Gaudi", bus_id="0000:33:00.0", memory_used_mib=512, temperature_c=30),
        Card(index=1, name="Gaudi", bus_id="0000:34:00.0", memory_used_mib=768, temperature_c=31),
    )


def test_ppu_cards_are_counted_by_their_nodes() -> None:
    assert parse("thead", nodes="/dev/alixpu_ppu1\n/dev/alixpu_ppu0") == CardReport(
        vendor="thead",
        cards=(
            Card(index=0, name="PPU", nodes=("/dev/alixpu_ppu0",)),
            Card(index=1, name="PPU", nodes=("/dev/alixpu_ppu1",)),
        ),
        problem="memory, use and processes of PPU cards are not read",
    )


TWO = (Card(index=0, uuid='"; reboot'), Card(index=2, name="--privileged"))


@pytest.mark.parametrize(
    ("vendor", "arguments", "environment"),
    [
        (
            "intel",
            "--device /dev/dri "
            "--mount type=bind,source=/dev/dri/by-path,target=/dev/dri/by-path,readonly",
            {"ZE_AFFINITY_MASK": "0,2"},
        ),
        (
            "gaudi",
            "--runtime habana --cap-add SYS_NICE",
            {
                "HABANA_VISIBLE_DEVICES": "all",
                "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                "HABANA_VISIBLE_MODULES": "0,2",
            },
        ),
        (
            "mthreads",
            "--runtime mthreads",
            {"MTHREADS_VISIBLE_DEVICES": "0,2", "MTHREADS_DRIVER_CAPABILITIES": "all"},
        ),
        (
            "metax",
            "--device /dev/dri --device /dev/mxcd --group-add video "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined",
            {"CUDA_VISIBLE_DEVICES": "0,2"},
        ),
        ("iluvatar", "--runtime iluvatar", {"IX_VISIBLE_DEVICES": "0,2"}),
        (
            "cambricon",
            "--device /dev/cambricon_ctl --device /dev/cambricon_dev0 "
            "--device /dev/cambricon_dev2 "
            "--mount type=bind,source=/usr/bin/cnmon,target=/usr/bin/cnmon,readonly "
            "--cap-add SYS_PTRACE --security-opt seccomp=unconfined",
            {},
        ),
        (
            "thead",
            "--device /dev/alixpu --device /dev/alixpu_ctl --device /dev/alixpu_ppu0 "
            "--device /dev/alixpu_ppu2",
            {},
        ),
    ],
)
def test_some_cards_of_each_vendor_and_nothing_of_what_their_names_say(
    vendor: str, arguments: str, environment: dict[str, str]
) -> None:
    access = VENDORS[vendor].container(TWO, False)
    assert " ".join(access.arguments) == arguments
    assert access.environment == environment


def test_a_node_that_the_host_named_is_the_node_that_is_given() -> None:
    report = parse("cambricon", cards=MLU370, nodes="/dev/cambricon0\n/dev/cambricon_ctl")
    assert report.cards[0].nodes == ("/dev/cambricon0",)


@pytest.mark.parametrize("vendor", ["metax", "mthreads"])
def test_mccl_gets_its_interface_and_devices(vendor: str) -> None:
    fabric = Fabric(ip="10.0.0.1", interface="eth0", rdma_devices=("mlx5_0",))
    assert VENDORS[vendor].network_environment(fabric) == {
        "MCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "TP_SOCKET_IFNAME": "eth0",
        "MCCL_IB_HCA": "mlx5_0",
    }


def test_a_sick_metax_card_says_so() -> None:
    (card,) = parse("metax", cards=OLDER_C500.replace("Available", "Fault    ")).cards
    assert card.problem == "mx-smi says: fault"
