"""Which vendor's cards a host has, before any vendor tool is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from vllmdeploy.accelerators import pci
from vllmdeploy.accelerators.asking import answers, ask
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import CardReport, PciDevice, Presence
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.errors import last_line

AUTO = "auto"
_CPU = "cpu"
_NODES = """for n in $2; do [ -e "$n" ] && echo "$n"; done; true"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The vendor that a host is driven as. With a `problem` the choice is only a guess."""

    vendor: str
    devices: tuple[PciDevice, ...] = ()
    problem: str = ""


def presence(known: Iterable[Accelerator]) -> Fact[Presence]:
    """One cheap command for all vendors: no tool runs, nothing is forked."""
    vendors = tuple(known)
    ids = " ".join(one for vendor in vendors for one in vendor.pci_vendors)
    nodes = " ".join(dict.fromkeys(one for vendor in vendors for one in vendor.device_nodes))
    return Fact(
        "cards in /sys and /dev",
        # $2 is unquoted in the loop on purpose: the shell expands the globs in it.
        ask({"pci": pci.SHELL, "nodes": _NODES}, ids, nodes),
        _parse_presence,
    )


def _parse_presence(result: Result) -> Presence:
    said = answers(result)
    if "pci" not in said:
        return Presence(problem=f"/sys/bus/pci could not be read: {last_line(result.output)}")
    nodes = said["nodes"].text.split() if "nodes" in said else ()
    return Presence(
        devices=pci.parse(said["pci"].text),
        nodes=tuple(node for node in nodes if pci.NODE.fullmatch(node)),
    )


def choose(
    found: Presence, known: Mapping[str, Accelerator], *, wanted: str | None = None
) -> Choice:
    """An explicit `accelerator=` wins; else the one vendor whose cards are there; else the CPU."""
    if wanted and wanted != AUTO:
        if wanted not in known:
            return Choice(vendor=_CPU, problem=_unknown(wanted, known))
        return Choice(vendor=wanted, devices=_cards_of(known[wanted], found))
    if found.problem:
        return Choice(vendor=_CPU, problem=found.problem)
    there = [vendor for vendor in known.values() if _is_there(vendor, found)]
    driven = [vendor for vendor in there if _driver(vendor, found)]
    candidates = driven or there
    if not candidates:
        return Choice(vendor=_CPU)
    first = candidates[0]
    cards = _cards_of(first, found)
    if len(candidates) > 1:
        return Choice(vendor=first.name, devices=cards, problem=_several(candidates, found))
    problem = "" if driven else _no_driver(first, len(cards))
    return Choice(vendor=first.name, devices=cards, problem=problem)


def completed(report: CardReport, choice: Choice) -> CardReport:
    """The tool's report; where the tool named no card, the cards of /sys with the reason."""
    problem = choice.problem or report.problem
    if report.cards or not choice.devices:
        return replace(report, problem=problem)
    reason = problem or "the vendor's tool does not list it"
    return replace(report, cards=pci.as_cards(choice.devices, problem=reason), problem=reason)


def _cards_of(vendor: Accelerator, found: Presence) -> tuple[PciDevice, ...]:
    return tuple(
        device
        for device in found.devices
        if device.vendor in vendor.pci_vendors and vendor.is_card(device)
    )


def _driver(vendor: Accelerator, found: Presence) -> bool:
    return any(
        fnmatchcase(node, pattern) for node in found.nodes for pattern in vendor.device_nodes
    )


def _is_there(vendor: Accelerator, found: Presence) -> bool:
    proven = vendor.nodes_are_proof and _driver(vendor, found)
    return proven or bool(_cards_of(vendor, found))


def _unknown(wanted: str, known: Mapping[str, Accelerator]) -> str:
    return f"accelerator={wanted} is not known; there are: {', '.join(known)}"


def _several(candidates: Sequence[Accelerator], found: Presence) -> str:
    having = " and ".join(
        f"{vendor.title} ({len(_cards_of(vendor, found)) or '?'})" for vendor in candidates
    )
    ways = " or ".join(f"accelerator={vendor.name}" for vendor in candidates)
    return f"cards of several vendors: {having}; say which with {ways} on the host's line"


def _no_driver(vendor: Accelerator, count: int) -> str:
    nodes = " or ".join(vendor.device_nodes)
    cards = f"{count} {vendor.title} card{'s' if count != 1 else ''}"
    return f"{cards} on the PCI bus, but there is no {nodes}: is the driver loaded?"
