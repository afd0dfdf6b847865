"""What is asked for when a model is to be served, and what was found for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vllmdeploy.core.command import Command
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.wanted import DRAIN_S, ExecutorChoice, Wanted
from vllmdeploy.tools import docker
from vllmdeploy.tools.ray import RayNode
from vllmdeploy.tools.safetensors import Weights
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_engine import EngineState, Task
from vllmdeploy.tools.vllm_measured import Measured
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import Service, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceWanted:
    """One `start-service`. `model`: a folder's name, a repository's id or a path below MODEL_PATH;
    `tensor_parallel` 0: all cards; `replica`: which of its engines this is, from 1."""

    model: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    tensor_parallel: int = 0
    pipeline_parallel: int = 1
    task: Task = "generate"
    executor: ExecutorChoice = "auto"
    quantization: str = "none"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    drain_s: int = DRAIN_S
    arguments: tuple[str, ...] = ()
    ports: tuple[int, int] = (8100, 8199)
    host: str = "127.0.0.1"
    replicas: int = 1
    replica: int = 1

    @classmethod
    def stored(cls, kept: Mapping[str, object]) -> ServiceWanted:
        """As `asdict` wrote it; keys of another version are left out."""
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {key: value for key, value in kept.items() if key in known}
        for key in ("aliases", "arguments", "ports"):
            if key in given:
                given[key] = tuple(given[key])
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundServices:
    """One group as a service meets it: its members, what is stored, what runs, what is inside.
    `weights`: of the model on the head, where they can be told; `measured`: what engines said of
    their caches before, by their conditions; `elsewhere`: by host, the digests of the files of
    ranks on other hosts than the head."""

    members: tuple[Member, ...]
    stored: Mapping[str, Stored] = field(default_factory=dict[str, Stored])
    engines: Mapping[str, EngineState] = field(default_factory=dict[str, EngineState])
    vllm: Vllm = field(default_factory=Vllm)
    models: Mapping[str, FoundModel] = field(default_factory=dict[str, FoundModel])
    weights: Weights | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict[str, Measured])
    elsewhere: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])

    @property
    def head(self) -> Member:
        return self.members[0]

    @property
    def with_ranks(self) -> tuple[Member, ...]:
        """The hosts that run ranks by files of their own: all of a group without Ray."""
        return self.members if self.head.executor == "mp" else ()

    @property
    def ray_nodes(self) -> tuple[RayNode, ...]:
        seen = self.head.found.ray
        return tuple(seen.alive().values()) if seen else ()

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(one.service for one in self.stored.values() if one.service)


def inside(wanted: Wanted, node: str, *argv: str) -> Command:
    """A command where the node's engines run: in its container, or with its interpreter."""
    if wanted.runtime == "docker":
        return docker.execute(node, *argv)
    first, *rest = argv
    return Command((wanted.python if first == "python3" else first, *rest), limit_s=30, root=True)
