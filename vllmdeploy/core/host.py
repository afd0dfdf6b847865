"""A host as the user named it, and the fleet of all hosts of one settings file."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_GROUP = "default"


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
    """All hosts; the first head is the fleet's head, where lock, audit log and specs live."""

    hosts: tuple[Host, ...]

    @property
    def head(self) -> Host:
        return next(host for host in self.hosts if host.head)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(host.group for host in self.hosts))

    def group(self, name: str) -> tuple[Host, ...]:
        """The members of a group, its Ray head first."""
        members = [host for host in self.hosts if host.group == name]
        return tuple(sorted(members, key=lambda host: not host.head))

    def named(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)
