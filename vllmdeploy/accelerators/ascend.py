"""Huawei Ascend: the table of npu-smi, /dev/davinciN by physical id, HCCL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.accelerators import handing, reading
from vllmdeploy.accelerators.asking import answers, ask, complaint, text_of, unreadable
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import (
    Card,
    CardProcess,
    CardReport,
    ContainerAccess,
    Fabric,
    PciDevice,
)
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "npu-smi"
_QUESTIONS = {
    "cards": f"{_TOOL} info",
    "nodes": 'for n in /dev/davinci[0-9]*; do [ -e "$n" ] && echo "${n#/dev/davinci}"; done; true',
}
_VERSION = re.compile(r"npu-smi \S+\s+Version: (\S+)")
_NPU = re.compile(r"(\d{1,4})\s+([A-Za-z0-9][\w.-]*[A-Za-z][\w.-]*|\d{3,}\w+)")
_CHIP = re.compile(r"(\d{1,3})(?:\s+(\d{1,4}))?")
_PAIR = re.compile(r"(\d{1,9})\s*/\s*(\d{1,9})")
_HEALTHY = ("OK", "WARNING")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chip:
    """One chip: what the program calls a card. `physical` is where the tool says the number."""

    npu: int
    chip: int
    physical: int | None
    card: Card


def _parse(result: Result) -> CardReport:
    said = answers(result)
    text = text_of(said, "cards")
    chips = tuple(_chips(text))
    numbers = sorted(int(word) for word in text_of(said, "nodes").split() if word.isdecimal())
    holders = _processes(text)
    problem = complaint(_TOOL, said.get("cards"), result)
    if not problem and not chips:
        problem = unreadable(_TOOL, text)
    version = _VERSION.search(text)
    return CardReport(
        vendor="ascend",
        cards=tuple(
            replace(
                one.card,
                index=number,
                nodes=(f"/dev/davinci{number}",),
                processes=holders.get((one.npu, one.chip), ()),
            )
            for one, number in zip(chips, _physical(chips, numbers), strict=True)
        ),
        driver_version=reading.words(version[1]) if version else "",
        problem=problem,
    )


def _chips(text: str) -> Iterator[_Chip]:
    """Two rows a chip: name and health, then address and figures."""
    above: tuple[int, str, str, str] | None = None
    for row in reading.cells(text):
        if len(row) != 3:
            above = None
            continue
        if head := _NPU.fullmatch(row[0]):
            above = (int(head[1]), head[2], row[1], row[2])
        elif above and (place := _CHIP.fullmatch(row[0])) and reading.bus_id(row[1]):
            yield _chip(above, place, row[1], row[2])


def _chip(
    above: tuple[int, str, str, str], place: re.Match[str], address: str, figures: str
) -> _Chip:
    npu, name, health, power_and_heat = above
    # HBM stands last; a 310P has no HBM column and its memory stands there instead.
    pairs = [(int(used), int(total)) for used, total in _PAIR.findall(figures)]
    used, total = next((pair for pair in reversed(pairs) if pair[1]), (None, None))
    heat = power_and_heat.split()[1:2]
    return _Chip(
        npu=npu,
        chip=int(place[1]),
        physical=int(place[2]) if place[2] else None,
        card=Card(
            index=npu,
            name=name,
            bus_id=reading.bus_id(address),
            memory_total_mib=total,
            memory_used_mib=used,
            utilisation_percent=reading.amount(figures),
            temperature_c=reading.number(heat[0]) if heat else None,
            problem="" if health.upper() in _HEALTHY else f"npu-smi says: health {health}",
        ),
    )


def _physical(chips: Sequence[_Chip], nodes: Sequence[int]) -> tuple[int, ...]:
    """The number in /dev/davinciN: said by the tool, else by the nodes, else the NPU's own."""
    said = [one.physical for one in chips if one.physical is not None]
    if len(said) == len(chips):
        return tuple(said)
    if len(nodes) == len(chips):
        return tuple(nodes)
    npus = [one.npu for one in chips]
    return tuple(npus) if len(set(npus)) == len(npus) else tuple(range(len(chips)))


def _processes(text: str) -> Mapping[tuple[int, int], tuple[CardProcess, ...]]:
    found: dict[tuple[int, int], tuple[CardProcess, ...]] = {}
    for row in reading.cells(text):
        place = re.fullmatch(r"(\d{1,4})\s+(\d{1,3})", row[0]) if len(row) == 4 else None
        if place and row[1].isdecimal():
            key = (int(place[1]), int(place[2]))
            process = CardProcess(
                pid=int(row[1][:10]),
                name=reading.words(row[2]),
                memory_mib=reading.amount(row[3]),
            )
            found[key] = (*found.get(key, ()), process)
    return found


def _is_card(device: PciDevice) -> bool:
    # Huawei's servers show a display of the same vendor: that of their management controller.
    return device.pci_class.startswith("0x1200")


_MANAGERS = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
_DRIVER_FILES = (
    "/usr/local/dcmi",
    "/usr/local/Ascend/driver/lib64",
    "/usr/local/Ascend/driver/version.info",
    "/usr/local/Ascend/driver/tools/hccn_tool",
    "/etc/ascend_install.info",
)


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    # Inside, the runtime numbers the given chips from 0: no variable has to choose.
    nodes = (node for card in cards for node in card.nodes or (f"/dev/davinci{card.index}",))
    return ContainerAccess(
        arguments=(
            *handing.options("--device", (*nodes, *_MANAGERS)),
            *handing.read_only(*_DRIVER_FILES),
        )
    )


def _network(fabric: Fabric) -> Mapping[str, str]:
    variables = {"HCCL_IF_IP": fabric.ip, **handing.plain_interfaces(fabric)}
    if fabric.interface:
        variables["HCCL_SOCKET_IFNAME"] = f"={fabric.interface}"
    return variables


def _engine_flags(cards: tuple[Card, ...]) -> tuple[str, ...]:
    """A 310P has neither graphs nor bfloat16."""
    small = any(card.name.upper().startswith("310P") for card in cards)
    return ("--enforce-eager", "--dtype", "float16") if small else ()


ACCELERATOR = Accelerator(
    name="ascend",
    title="Huawei Ascend",
    verified=True,
    pci_vendors=("0x19e5",),
    device_nodes=("/dev/davinci_manager",),
    is_card=_is_card,
    cards=Fact("Ascend chips", ask(_QUESTIONS), _parse),
    container=_container,
    cdi_kind="huawei.com/npu",
    visible_variable="ASCEND_RT_VISIBLE_DEVICES",
    ray_resource="NPU",
    ray_flags=handing.ray_custom("NPU"),
    ray_environment={"RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES": "1"},
    network_environment=_network,
    engine_flags=_engine_flags,
    default_image="quay.io/ascend/vllm-ascend:v0.18.0",
)
