"""What we want to run on a host, as values that no setting and no host can surprise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["ray-head", "ray-worker", "instance"]

LABEL = "vllmdeploy."
CLUSTER_LABEL = LABEL + "cluster"
GROUP_LABEL = LABEL + "group"
ROLE_LABEL = LABEL + "role"
SERVICE_LABEL = LABEL + "service"
GENERATION_LABEL = LABEL + "generation"
FINGERPRINT_LABEL = LABEL + "fingerprint"
CARDS_LABEL = LABEL + "cards"
PACKAGE_LABEL = LABEL + "package"
STANDS_IN_LABEL = LABEL + "stands-in-for"

# In an engine's environment: a new number is a new engine, also where nothing else changed.
GENERATION_VARIABLE = "VLLMDEPLOY_GENERATION"
MPS_LABEL = LABEL + "mps"
"""The pipe folder of the MPS daemon whose client it is."""


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsDoor:
    """How an engine reaches the MPS daemon of its cards: the daemon's folders, which have the same
    paths in a container."""

    pipe: str
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """One container, complete. `fingerprint` covers what forces a re-creation and nothing else."""

    name: str
    image: str
    command: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    mounts: tuple[Mount, ...] = ()
    arguments: tuple[str, ...] = ()
    shm_size: str = ""
    entrypoint: str = ""
    stop_s: int = 0
    """What it gets to end by itself, whoever stops it; 0: what Docker gives all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One warden with its Ray node or its only engine, whatever supervises it: Docker, systemd or
    nobody. `command` is what it supervises; an engine has no `ray_address`, but `probes`: the
    warden's arguments by which it asks the engine how it is."""

    name: str
    cluster: str
    group: str
    role: Role
    host: str
    ip: str
    command: tuple[str, ...]
    ray_address: str = ""
    probes: tuple[str, ...] = ()
    service: str = ""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    cards: tuple[int, ...] = ()
    ray_cards: int = 0
    stop_limit_s: int = 0
    """What its warden takes to end all, requests at work included; 0: what wardens take."""
    package: str = ""
    generation: int = 1
    mps: MpsDoor | None = None
    stands_in_for: str = ""

    def labels(self, fingerprint: str) -> dict[str, str]:
        return {
            CLUSTER_LABEL: self.cluster,
            GROUP_LABEL: self.group,
            ROLE_LABEL: self.role,
            GENERATION_LABEL: str(self.generation),
            FINGERPRINT_LABEL: fingerprint,
            CARDS_LABEL: ",".join(map(str, self.cards)),
            PACKAGE_LABEL: self.package,
            **({SERVICE_LABEL: self.service} if self.service else {}),
            **({MPS_LABEL: self.mps.pipe} if self.mps else {}),
            **({STANDS_IN_LABEL: self.stands_in_for} if self.stands_in_for else {}),
        }


def fingerprint(parts: object) -> str:
    """Twelve hex digits that change when any of the parts does."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
