"""MetaX: both table layouts of mx-smi, MACA, MCCL."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vllmdeploy.accelerators import handing, reading, tables
from vllmdeploy.accelerators.asking import ask
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "mx-smi"
_VERSION = re.compile(r"Kernel Mode Driver Version:\s*(\S{1,60})")
_NAMED = re.compile(r"(\d{1,3})\s+(\S.*)")
_UNUSABLE = ("error", "fault", "unavailable", "lost")


def _parse(result: Result) -> CardReport:
    return tables.report("metax", _TOOL, result, cards=_cards, version=_VERSION)


def _cards(text: str) -> Iterator[Card]:
    """The first row has the address, the second the memory. The newer layout has a column more,
    and in it the number by which the card is chosen."""
    for above, below in tables.two_rows(text, begins=_begins, ends=_ends):
        board = _NAMED.fullmatch(above[0])
        number = reading.amount(above[1]) if len(above) == 4 else None
        used, total = reading.used_and_total(below[-2])
        state = below[-1].lower()
        yield Card(
            index=number if number is not None else int(board[1]) if board else 0,
            name=reading.words(board[2]) if board else "",
            bus_id=reading.bus_id(above[-2]),
            utilisation_percent=reading.amount(above[-1]),
            memory_used_mib=used,
            memory_total_mib=total,
            temperature_c=tables.temperature(" ".join(below[:-2])),
            problem=f"mx-smi says: {state}" if any(word in state for word in _UNUSABLE) else "",
        )


def _begins(row: tables.Row) -> bool:
    return len(row) in (3, 4) and bool(_NAMED.fullmatch(row[0])) and bool(reading.bus_id(row[-2]))


def _ends(row: tables.Row) -> bool:
    return len(row) in (3, 4) and "/" in row[-2] and "MiB" in row[-2]


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    return ContainerAccess(
        arguments=(
            *handing.options("--device", ("/dev/dri", "/dev/mxcd")),
            *("--group-add", "video", "--security-opt", "seccomp=unconfined"),
            *("--security-opt", "apparmor=unconfined"),
        ),
        environment=handing.chosen("CUDA_VISIBLE_DEVICES", cards, all_of_them),
    )


ACCELERATOR = Accelerator(
    name="metax",
    title="MetaX",
    verified=False,
    pci_vendors=("0x9999",),
    device_nodes=("/dev/mxcd",),
    cards=Fact("MetaX cards", ask({"cards": _TOOL}), _parse),
    container=_container,
    cdi_kind="metax-tech.com/gpu",
    visible_variable="CUDA_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    ray_environment={"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"},
    network_environment=handing.mccl,
    default_image=(
        "cr.metax-tech.com/public-ai-release/maca/vllm-metax:"
        "0.24.0-maca.ai3.8.2.5-torch2.10-py310-ubuntu22.04-amd64"
    ),
)
