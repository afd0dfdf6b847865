"""What every vendor module provides, as one value: `ACCELERATOR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.card import Card, CardReport, ContainerAccess, Fabric, PciDevice
from vllmdeploy.core.fact import Fact

_COMPUTE_CLASSES = ("0x0300", "0x0302", "0x0380", "0x0b40", "0x1200")


def is_compute(device: PciDevice) -> bool:
    """Display, 3D, co-processor or processing accelerator: not the card's audio, USB or bridge."""
    return device.pci_class[:6] in _COMPUTE_CLASSES


def no_limit(driver_version: str) -> str:
    """For vendors whose driver states no newest toolkit."""
    return ""


def no_flags(cards: tuple[Card, ...]) -> tuple[str, ...]:
    """For vendors whose cards need nothing special from vLLM."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """How to find one vendor's cards, read its tool, and hand cards to a container and to Ray."""

    name: str
    title: str
    verified: bool
    """Parser and flags were built from outputs and command lines captured on such hardware; that
    is all it says: none was run there by us. False is shown as `unverified`."""
    pci_vendors: tuple[str, ...]
    """PCI vendor ids as /sys shows them, `0x10de`."""
    device_nodes: tuple[str, ...]
    """Nodes or paths that a loaded driver makes; a trailing * is a glob."""
    nodes_are_proof: bool = True
    """Whether those nodes mean this vendor's cards, PCI or not. Several vendors share some."""
    is_card: Callable[[PciDevice], bool] = is_compute
    """Whether a PCI function of this vendor is a card that serves models."""
    cards: Fact[CardReport]
    """Asks the vendor's tool. The parser never raises: what it cannot read becomes `problem`."""
    container: Callable[[tuple[Card, ...], bool], ContainerAccess]
    """(the chosen cards, whether they are all the host has) -> docker arguments and environment."""
    cdi_kind: str = ""
    """What this vendor's cards are called in CDI device names, `nvidia.com/gpu`."""
    visible_variable: str = ""
    """Limits a process to cards by index where no container does it."""
    ray_resource: str
    """The name under which Ray counts these cards: GPU, NPU, HPU."""
    ray_flags: Callable[[int], tuple[str, ...]]
    """`ray start` flags that declare a number of cards."""
    ray_environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """What a Ray node's environment needs, before `ray start`."""
    instance_environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """What an engine's environment needs where there is no Ray."""
    network_environment: Callable[[Fabric], Mapping[str, str]]
    """Collective-library variables for one host's fabric."""
    engine_flags: Callable[[tuple[Card, ...]], tuple[str, ...]] = no_flags
    """vLLM flags that some models of card cannot do without."""
    toolkit_limit: Callable[[str], str] = no_limit
    """The newest toolkit (CUDA 12.4) that a driver version runs, or nothing when not known."""
    default_image: str = ""

    @property
    def mark(self) -> str:
        return "" if self.verified else "unverified"
