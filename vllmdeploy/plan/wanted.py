"""What the user wants of a Ray cluster, taken from the settings once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllmdeploy.tools.ray import RayPorts

Runtime = Literal["docker", "process", "systemd"]
RayAuth = Literal["auto", "token", "none"]
Executor = Literal["ray", "mp"]
ExecutorChoice = Literal["auto", "ray", "mp"]

DRAIN_S = 30
"""What requests at work get to end, where the settings say nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedGroup:
    name: str
    image: str = ""
    head_ip: str | None = None
    interface: str = "auto"
    accelerator: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Everything that decides how the nodes of a fleet look, and nothing that was observed."""

    cluster: str
    groups: Mapping[str, WantedGroup]
    ports: RayPorts
    package: str
    model_path: str
    shm_size: str = ""
    ray_auth: RayAuth = "auto"
    ray_cpus: int | None = None
    executor: ExecutorChoice = "auto"
    drain_s: int = DRAIN_S
    runtime: Runtime = "docker"
    python: str = "python3"
    cdi: bool = False
    docker_arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    patience_s: float = 300.0
