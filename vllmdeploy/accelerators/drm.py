"""Cards of the DRM family (AMD, Hygon): joined with what /sys knows of the same cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllmdeploy.accelerators import pci
from vllmdeploy.core.card import Card, PciDevice

# An APU's graphics have a small carve-out of the host's memory and serve no model.
SMALLEST_CARD_MIB = 4096


def joined(cards: Sequence[Card], devices: Sequence[PciDevice]) -> tuple[Card, ...]:
    """Nodes, address and missing figures from /sys: by address, else by order if all are there."""
    ordered = sorted(devices, key=lambda device: device.address)
    by_address = {device.address: device for device in ordered}
    by_order = len(ordered) == len(cards) and not any(card.bus_id for card in cards)
    return tuple(
        _with(card, ordered[place] if by_order else by_address.get(card.bus_id))
        for place, card in enumerate(cards)
    )


def _with(card: Card, device: PciDevice | None) -> Card:
    if device is None:
        return card
    (known,) = pci.as_cards((device,))
    total, used, busy = card.memory_total_mib, card.memory_used_mib, card.utilisation_percent
    return replace(
        card,
        bus_id=known.bus_id,
        nodes=known.nodes,
        memory_total_mib=known.memory_total_mib if total is None else total,
        memory_used_mib=known.memory_used_mib if used is None else used,
        utilisation_percent=known.utilisation_percent if busy is None else busy,
    )


def large_enough(device: PciDevice) -> bool:
    return device.memory_total_mib is None or device.memory_total_mib >= SMALLEST_CARD_MIB
