"""What every vendor module provides, as one value: `ACCELERATOR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllmdeploy.core.card import Card, CardReport, ContainerAccess, Fabric
from vllmdeploy.core.fact import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """How to find one vendor's cards, read its tool, and hand cards to a container and to Ray."""

    name: str
    title: str
    verified: bool
    pci_vendors: tuple[str, ...]
    """PCI vendor ids as /sys shows them, `0x10de`."""
    device_nodes: tuple[str, ...]
    """Nodes or paths whose presence proves the driver; a trailing * is a glob."""
    cards: Fact[CardReport]
    """Asks the vendor's tool. The parser never raises: what it cannot read becomes `problem`."""
    container: Callable[[tuple[Card, ...], bool], ContainerAccess]
    """(the chosen cards, whether they are all the host has) -> docker arguments and environment."""
    ray_resource: str
    """The name under which Ray counts these cards: GPU, NPU, HPU."""
    ray_flags: Callable[[int], tuple[str, ...]]
    """`ray start` flags that declare a number of cards."""
    network_environment: Callable[[Fabric], Mapping[str, str]]
    """Collective-library variables for one host's fabric."""
    default_image: str = ""
