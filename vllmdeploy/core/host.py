"""A host as the user named it, and the fleet of all hosts of one settings file."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_GROUP = "default"
FRONT_GROUP = "gateway"
"""The group of hosts that run a gateway and nothing else: IMAGE_GATEWAY is their image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One line of worker_nodes.txt, or the head.

    `name` is what the user wrote and what every message shows; `address` is what SSH connects to.
    """

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    group: str = DEFAULT_GROUP
    ip: str | None = None
    interface: str | None = None
    accelerator: str | None = None
    gpus: tuple[int, ...] | None = None
    ray_gpus: int | None = None
    head: bool = False
    spare: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class Fleet:
    """All hosts with cards; the first head is the fleet's head, where lock, audit log and specs
    live. `gateways`: those that GATEWAY_HOSTS names, in its order, among `hosts` or not."""

    hosts: tuple[Host, ...]
    gateways: tuple[Host, ...] = ()

    @property
    def head(self) -> Host:
        return next(host for host in self.hosts if host.head)

    @property
    def fronts(self) -> tuple[Host, ...]:
        """Hosts that run a gateway and nothing else."""
        names = {host.name for host in self.hosts}
        return tuple(host for host in self.gateways if host.name not in names)

    @property
    def everyone(self) -> tuple[Host, ...]:
        return (*self.hosts, *self.fronts)

    @property
    def offering(self) -> tuple[Host, ...]:
        """The hosts that are to run a gateway, the one that people are told about first."""
        return self.gateways or (self.head,)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(host.group for host in self.hosts))

    def group(self, name: str) -> tuple[Host, ...]:
        """The members of a group, its Ray head first."""
        members = [host for host in self.hosts if host.group == name]
        return tuple(sorted(members, key=lambda host: not host.head))

    def named(self, name: str) -> Host:
        return next(host for host in self.everyone if host.name == name)
