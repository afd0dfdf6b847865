"""Iluvatar: the table of ixsmi and the CoreX devices."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vllmdeploy.accelerators import handing, reading, tables
from vllmdeploy.accelerators.asking import ask
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "ixsmi"
_VERSION = re.compile(r"Driver Version:\s*(\S{1,60})")
_NAMED = re.compile(r"(\d{1,3})\s+(\S.*)")
_PROCESS = re.compile(r"\|\s*(\d{1,3})\s+(\d{1,10})\s+(\S.*?)\s+(\d+)\s*\|")


def _parse(result: Result) -> CardReport:
    return tables.report(
        "iluvatar", _TOOL, result, cards=_cards, version=_VERSION, process=_PROCESS
    )


def _cards(text: str) -> Iterator[Card]:
    """As in older tables of nvidia-smi."""
    for above, below in tables.two_rows(text, begins=_begins, ends=_ends):
        named = _NAMED.fullmatch(above[0])
        used, total = reading.used_and_total(below[1])
        yield Card(
            index=int(named[1]) if named else 0,
            name=reading.words(named[2]) if named else "",
            bus_id=reading.bus_id(above[1]),
            memory_used_mib=used,
            memory_total_mib=total,
            utilisation_percent=reading.amount(below[2]),
            temperature_c=tables.temperature(below[0]),
        )


def _begins(row: tables.Row) -> bool:
    return len(row) == 3 and bool(_NAMED.fullmatch(row[0])) and bool(reading.bus_id(row[1]))


def _ends(row: tables.Row) -> bool:
    return len(row) == 3 and "MiB" in row[1]


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    visible = "all" if all_of_them else handing.indices(cards)
    return ContainerAccess(
        arguments=("--runtime", "iluvatar"), environment={"IX_VISIBLE_DEVICES": visible}
    )


ACCELERATOR = Accelerator(
    name="iluvatar",
    title="Iluvatar",
    verified=False,
    pci_vendors=("0x1e3e",),
    device_nodes=("/dev/itrctl", "/dev/iluvatar0"),
    cards=Fact("Iluvatar cards", ask({"cards": _TOOL}), _parse),
    container=_container,
    cdi_kind="iluvatar.com/gpu",
    visible_variable="CUDA_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    network_environment=handing.nccl,
)
