"""Hygon DCU: hy-smi, whose JSON is often not JSON, and the DTK's devices and libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from vllmdeploy.accelerators import drm, handing, pci, reading, smi_json
from vllmdeploy.accelerators.asking import Answer, answers, ask, complaint, text_of, unreadable
from vllmdeploy.accelerators.base import Accelerator, is_compute
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

_TOOL = "hy-smi"
_PCI_VENDOR = "0x1d94"
# --showhw and --showtopo put plain text into the JSON; older releases refuse some of the rest.
# What needs no tool comes first: it is there even when the tool hangs.
_QUESTIONS = {
    "pci": pci.SHELL,
    "driver": "cat /sys/module/hycu/version 2>/dev/null || cat /sys/module/hydcu/version",
    "cards": f"""\
tool={_TOOL}
command -v {_TOOL} >/dev/null || {{ command -v rocm-smi >/dev/null && tool=rocm-smi; }}
text=$($tool --showid --showproductname --showuniqueid --showmeminfo vram --showuse --showtemp \
--json 2>&1); status=$?
[ $status -eq 0 ] || [ $status -eq 127 ] || {{
  text=$($tool --showproductname --showmeminfo vram --showuse --json 2>&1); status=$?
}}
printf '%s\\n' "$text"
(exit $status)""",
    "table": "[ $status -eq 0 ] || [ $status -eq 127 ] || $tool",
    "processes": "[ $status -eq 127 ] || $tool --showpids",
}
_ROW = re.compile(r"^(\d{1,3})\s+(\S+)C\s+\S+\s+\S+\s+\S+\s+(\d+)%\s+([\d.]+)%.*?(\S+)\s*$", re.M)
_FIELD = re.compile(r"^\s*(PID|HCU Index|GPU Index|VRAM USED\(MiB\)):(.*)$", re.MULTILINE)


def _parse(result: Result) -> CardReport:
    said = answers(result)
    cards, problem = _cards(said, result)
    devices = tuple(filter(_is_card, pci.parse(text_of(said, "pci"))))
    if not cards and devices:
        cards = pci.as_cards(devices, problem=problem if result.timed_out else "")
        problem += "; read from /sys: no names, no processes"
    holders = _processes(text_of(said, "processes"))
    return CardReport(
        vendor="hygon",
        cards=tuple(
            replace(card, processes=holders.get(card.index, ()))
            for card in drm.joined(cards, devices)
        ),
        driver_version=_version(said.get("driver")),
        problem=problem,
    )


def _version(answer: Answer | None) -> str:
    return reading.words(answer.text) if answer and answer.ok else ""


def _cards(said: Mapping[str, Answer], result: Result) -> tuple[tuple[Card, ...], str]:
    text = text_of(said, "cards")
    cards, whole = smi_json.cards(text)
    if cards:
        return cards, "" if whole else f"{_TOOL} stopped in the middle of its answer"
    table = tuple(_rows(text_of(said, "table") or text))
    if table:
        return table, ""
    return (), complaint(_TOOL, said.get("cards"), result) or unreadable(_TOOL, text)


def _rows(text: str) -> Iterator[Card]:
    """The default table, for releases whose JSON cannot be had: it has no sizes and no names."""
    for index, heat, _, busy, mode in _ROW.findall(text):
        yield Card(
            index=int(index),
            temperature_c=reading.number(heat),
            utilisation_percent=reading.amount(busy),
            problem="in MIG mode, and only whole cards are planned" if mode == "MIG" else "",
        )


def _processes(text: str) -> Mapping[int, tuple[CardProcess, ...]]:
    """By card: a process may hold several, or none yet."""
    found: dict[int, tuple[CardProcess, ...]] = {}
    process: CardProcess | None = None
    held: list[int] = []
    for key, value in (*_FIELD.findall(text), ("PID", "")):
        if key == "PID":
            for index in held if process else ():
                found[index] = (*found.get(index, ()), *([process] if process else []))
            pid = reading.amount(value)
            process, held = (CardProcess(pid=pid) if pid else None), []
        elif key.endswith("Index"):
            held = [int(index) for index in re.findall(r"'(\d{1,3})'", value)]
        elif process:
            process = replace(process, memory_mib=reading.amount(value))
    return found


def _is_card(device: PciDevice) -> bool:
    # K100_AI shows itself as a bridge (class 0x06). Hygon's processors have real bridges of the
    # same class and vendor; only a card has DRM nodes.
    return device.vendor == _PCI_VENDOR and (is_compute(device) or bool(device.nodes))


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    # The runtime opens every node under /dev/dri, so cards are chosen by variable. Never by
    # ROCR_VISIBLE_DEVICES: Ray refuses to start with it.
    return ContainerAccess(
        arguments=(
            *handing.options("--device", ("/dev/kfd", "/dev/mkfd", "/dev/dri")),
            *handing.read_only("/opt/hyhal"),
            *("--group-add", "video", "--cap-add", "SYS_PTRACE"),
            *("--security-opt", "seccomp=unconfined"),
        ),
        environment=handing.chosen("HIP_VISIBLE_DEVICES", cards, all_of_them),
    )


def _network(fabric: Fabric) -> Mapping[str, str]:
    if not fabric.rdma_devices:
        return handing.nccl(fabric)
    # Hygon's fork of RCCL was seen with bare names only.
    bare = {"NCCL_IB_HCA": ",".join(fabric.rdma_devices), "HSA_FORCE_FINE_GRAIN_PCIE": "1"}
    return {**handing.nccl(fabric), **bare}


ACCELERATOR = Accelerator(
    name="hygon",
    title="Hygon DCU",
    verified=True,
    pci_vendors=(_PCI_VENDOR,),
    device_nodes=("/dev/mkfd",),
    is_card=_is_card,
    cards=Fact("Hygon cards", ask(_QUESTIONS, _PCI_VENDOR, limit_s=45), _parse),
    container=_container,
    cdi_kind="hygon.com/dcu",
    visible_variable="HIP_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    ray_environment=handing.KEEP_HIP_VISIBLE,
    network_environment=_network,
    default_image="image.sourcefind.cn:5000/dcu/admin/base/vllm:0.9.2-ubuntu22.04-dtk25.04.2-py3.10",
)
