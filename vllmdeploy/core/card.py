"""Cards as a host's vendor tool reports them, and what a container needs to use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CardProcess:
    pid: int
    name: str = ""
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card. None means that the tool did not say; `problem` says why a card is unusable.

    `index` is the number that the vendor's own tools and docs use for the card on its host.
    `nodes` are the card's own device nodes, where they are known.
    """

    index: int
    name: str = ""
    uuid: str = ""
    bus_id: str = ""
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    processes: tuple[CardProcess, ...] = ()
    nodes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReport:
    """What one host has. `problem` is why the report is incomplete, worded for a person."""

    vendor: str
    cards: tuple[Card, ...] = ()
    driver_version: str = ""
    problem: str = ""
    host_memory_mib: int | None = None
    """The host's own memory, where that is what the engine uses (cpu)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PciDevice:
    """One PCI function as /sys shows it; ids as `0x10de`, class as `0x030200`."""

    address: str
    vendor: str
    pci_class: str
    device: str = ""
    nodes: tuple[str, ...] = ()
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    utilisation_percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a host shows without any vendor tool: PCI functions of known vendors, driver nodes."""

    devices: tuple[PciDevice, ...] = ()
    nodes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerAccess:
    """`docker run` arguments and environment that put cards into a container."""

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """The network that a host's ranks use: its interface, its address, its live RDMA devices."""

    ip: str
    interface: str = ""
    rdma_devices: tuple[str, ...] = ()
