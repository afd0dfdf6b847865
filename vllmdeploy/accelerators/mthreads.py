"""Moore Threads: the table of mthreads-gmi, MUSA, MCCL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from vllmdeploy.accelerators import handing, reading, tables
from vllmdeploy.accelerators.asking import ask
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "mthreads-gmi"
_VERSION = re.compile(r"Driver Version:\s*(\S{1,60})")
_CARD = re.compile(r"^(\d{1,3})\s+(\S[^|]*?)\s*\|([^|]*)\|\s*(\d+)%\s+(\d+)MiB\((\d+)MiB\)")
_BELOW = re.compile(r"^\s+[^|]*\|[^|]*\|\s*(-?\d+)C\b")
_PROCESS = re.compile(r"^(\d{1,3})\s+(\d{1,10})\s+(\S.*?)\s+(\d+)MiB\s*$")


def _parse(result: Result) -> CardReport:
    return tables.report(
        "mthreads", _TOOL, result, cards=_cards, version=_VERSION, process=_PROCESS
    )


def _cards(text: str) -> Iterator[Card]:
    """Two or three lines a card; the temperature stands on the second."""
    lines = [*text.splitlines(), ""]
    for line, below in pairwise(lines):
        if row := _CARD.match(line):
            heat = _BELOW.match(below)
            yield Card(
                index=int(row[1]),
                name=reading.words(row[2]),
                bus_id=reading.bus_id(row[3]),
                utilisation_percent=reading.amount(row[4]),
                memory_used_mib=reading.amount(row[5]),
                memory_total_mib=reading.amount(row[6]),
                temperature_c=int(heat[1]) if heat else None,
            )


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    visible = "all" if all_of_them else handing.indices(cards)
    return ContainerAccess(
        arguments=("--runtime", "mthreads"),
        environment={"MTHREADS_VISIBLE_DEVICES": visible, "MTHREADS_DRIVER_CAPABILITIES": "all"},
    )


ACCELERATOR = Accelerator(
    name="mthreads",
    title="Moore Threads",
    verified=False,
    pci_vendors=("0x1ed5",),
    device_nodes=("/dev/mtgpu.0",),
    cards=Fact("Moore Threads cards", ask({"cards": _TOOL}), _parse),
    container=_container,
    cdi_kind="mthreads.com/gpu",
    visible_variable="MUSA_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    network_environment=handing.mccl,
)
