"""Cambricon: the table of cnmon and the MLU devices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from vllmdeploy.accelerators import handing, reading, tables
from vllmdeploy.accelerators.asking import answers, ask, text_of
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "cnmon"
_QUESTIONS = {
    "cards": _TOOL,
    "nodes": "for n in /dev/cambricon_dev[0-9]* /dev/cambricon[0-9]*; do "
    '[ -e "$n" ] && echo "$n"; done; true',
}
_VERSION = re.compile(r"Driver v(\S{1,60})")
_NAMED = re.compile(r"(\d{1,3})\s+/\s+(MLU\S*)")
_PROCESS = re.compile(r"\|\s*(\d{1,3})\s+/\s+(\d{1,10})\s+(\S.*?)\s+(\d+) MiB\s*\|")
_NODE = re.compile(r"/dev/cambricon(?:_dev)?(\d{1,3})")


def _parse(result: Result) -> CardReport:
    nodes = _nodes(text_of(answers(result), "nodes"))
    report = tables.report(
        "cambricon", _TOOL, result, cards=_cards, version=_VERSION, process=_PROCESS
    )
    cards = (replace(card, nodes=nodes.get(card.index, ())) for card in report.cards)
    return replace(report, cards=tuple(cards))


def _cards(text: str) -> Iterator[Card]:
    """Which column holds the address has moved between releases."""
    for above, below in tables.two_rows(text, begins=_begins, ends=_ends):
        named = _NAMED.match(above[0])
        used, total = reading.used_and_total(below[1])
        yield Card(
            index=int(named[1]) if named else 0,
            name=reading.words(named[2]) if named else "",
            bus_id=reading.bus_id(above[1]),
            memory_used_mib=used,
            memory_total_mib=total,
            utilisation_percent=reading.amount(above[2]),
            temperature_c=tables.temperature(below[0]),
        )


def _begins(row: tables.Row) -> bool:
    return len(row) == 3 and bool(_NAMED.match(row[0]))


def _ends(row: tables.Row) -> bool:
    return len(row) == 3 and "MiB" in row[1]


def _nodes(text: str) -> Mapping[int, tuple[str, ...]]:
    found = (_NODE.fullmatch(word) for word in text.split())
    return {int(node[1]): (node[0],) for node in found if node}


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    nodes = (node for card in cards for node in card.nodes or (f"/dev/cambricon_dev{card.index}",))
    return ContainerAccess(
        arguments=(
            *handing.options("--device", ("/dev/cambricon_ctl", *nodes)),
            *handing.read_only("/usr/bin/cnmon"),
            *("--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"),
        )
    )


ACCELERATOR = Accelerator(
    name="cambricon",
    title="Cambricon",
    verified=False,
    pci_vendors=("0xcabc",),
    device_nodes=("/dev/cambricon_ctl",),
    cards=Fact("Cambricon cards", ask(_QUESTIONS), _parse),
    container=_container,
    cdi_kind="cambricon.com/mlu",
    visible_variable="MLU_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    network_environment=handing.plain_interfaces,
)
