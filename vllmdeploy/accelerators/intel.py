"""Intel GPUs: xpu-smi's JSON and the render nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllmdeploy.accelerators import drm, handing, lenient_json, pci, reading
from vllmdeploy.accelerators.asking import answers, ask, complaint, text_of, unreadable
from vllmdeploy.accelerators.base import Accelerator, is_compute
from vllmdeploy.core.card import Card, CardReport, ContainerAccess, Fabric, PciDevice
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "xpu-smi"
_PCI_VENDOR = "0x8086"
_QUESTIONS = {"pci": pci.SHELL, "cards": f"{_TOOL} discovery -j"}
# Integrated graphics have had this place on every Intel processor.
_INTEGRATED = re.compile(r"0000:00:02\.[0-7]")


def _parse(result: Result) -> CardReport:
    said = answers(result)
    text = text_of(said, "cards")
    value, _ = lenient_json.parse(text)
    answer = reading.mapping(value)
    devices = tuple(filter(_is_card, pci.parse(text_of(said, "pci"))))
    cards = drm.joined(tuple(_cards(answer)), devices)
    if "error" in answer:
        problem = f"{_TOOL}: {reading.words(answer['error'])}"
    else:
        problem = complaint(_TOOL, said.get("cards"), result)
    if not problem and not cards:
        problem = unreadable(_TOOL, text)
    return CardReport(vendor="intel", cards=cards, problem=problem)


def _cards(answer: Mapping[str, Any]) -> Iterator[Card]:
    for entry in map(reading.mapping, reading.sequence(answer.get("device_list"))):
        index = reading.amount(entry.get("device_id", ""))
        if index is None or _INTEGRATED.fullmatch(str(entry.get("pci_bdf_address", ""))):
            continue
        yield Card(
            index=index,
            name=reading.words(entry.get("device_name", "")),
            uuid=reading.identity(entry.get("uuid", "")),
            bus_id=reading.bus_id(str(entry.get("pci_bdf_address", ""))),
        )


def _is_card(device: PciDevice) -> bool:
    """The vendor id is on every Intel chip of a host."""
    return (
        device.vendor == _PCI_VENDOR
        and device.pci_class.startswith("0x03")
        and is_compute(device)
        and not _INTEGRATED.fullmatch(device.address)
    )


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    return ContainerAccess(
        arguments=("--device", "/dev/dri", *handing.read_only("/dev/dri/by-path")),
        environment=handing.chosen("ZE_AFFINITY_MASK", cards, all_of_them),
    )


def _network(fabric: Fabric) -> Mapping[str, str]:
    return handing.plain_interfaces(fabric)


ACCELERATOR = Accelerator(
    name="intel",
    title="Intel GPU",
    verified=False,
    pci_vendors=(_PCI_VENDOR,),
    device_nodes=("/dev/dri/renderD*",),
    nodes_are_proof=False,
    is_card=_is_card,
    cards=Fact("Intel GPUs", ask(_QUESTIONS, _PCI_VENDOR), _parse),
    container=_container,
    cdi_kind="intel.com/gpu",
    visible_variable="ZE_AFFINITY_MASK",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    network_environment=_network,
    default_image="vllm/vllm-openai-xpu:v0.33.0",
)
