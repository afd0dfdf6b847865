"""What a command takes for the keys that are not set; the numbers are the seed documents'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllmdeploy.config.values import shown, suggestion
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.config.keys.all import Settings

Value = bool | int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`values` are fields of the settings; `model_size` is the model where none is named."""

    name: str
    title: str
    values: Mapping[str, Value] = field(default_factory=dict[str, Value])
    model_size: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What a rerank model of one size wants of a card. Pairs are (from, to)."""

    name: str
    memory_gib: tuple[int, int]
    max_num_seqs: tuple[int, int]
    workers: tuple[int, int]
    gpu_memory_utilization: tuple[float, float]


INSTANCES = Profile(
    name="instances",
    title="long answers, few at a time on each instance",
    values={
        "max_num_seqs": 6,
        "gpu_memory_utilization": 0.96,
        "max_model_len": 8192,
        "vllm_ports": (8001, 8002, 8003, 8004),
    },
)
_PRODUCTION = Profile(
    name="production",
    title="many requests on one card",
    values={
        "workers": 2,
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 32768,
        "gpu_memory_utilization": 0.9,
        "max_workers": 8,
        "tensor_parallel_size": 1,
    },
    model_size="4B",
)
_LOW_RESOURCE = Profile(
    name="low-resource",
    title="a small card",
    values={
        "workers": 1,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.6,
        "max_workers": 2,
        "tensor_parallel_size": 1,
    },
    model_size="0.6B",
)
_MULTI_GPU = Profile(
    name="multi-gpu",
    title="the largest model over two cards an engine",
    values={
        "workers": 4,
        "max_num_seqs": 2048,
        "max_num_batched_tokens": 65536,
        "gpu_memory_utilization": 0.95,
        "max_workers": 16,
        "tensor_parallel_size": 2,
    },
    model_size="8B",
)
PROFILES: Mapping[str, tuple[Profile, ...]] = {
    "instances": (INSTANCES,),
    "rerank": (_PRODUCTION, _LOW_RESOURCE, _MULTI_GPU),
}
"""By command; the first is what the command takes when none is named."""

MODEL_SIZES: tuple[ModelSize, ...] = (
    ModelSize(
        name="0.6B",
        memory_gib=(2, 4),
        max_num_seqs=(256, 512),
        workers=(2, 4),
        gpu_memory_utilization=(0.7, 0.8),
    ),
    ModelSize(
        name="4B",
        memory_gib=(8, 12),
        max_num_seqs=(512, 1024),
        workers=(1, 2),
        gpu_memory_utilization=(0.6, 0.7),
    ),
    ModelSize(
        name="8B",
        memory_gib=(16, 24),
        max_num_seqs=(1024, 2048),
        workers=(1, 1),
        gpu_memory_utilization=(0.5, 0.6),
    ),
)


def profile(command: str, name: str | None = None) -> Profile:
    known = PROFILES[command]
    if name is None:
        return known[0]
    for candidate in known:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in known]
    near = suggestion(name.lower(), names)
    raise UsageError(f"{shown(name)} is not a profile of {command}: {', '.join(names)}{near}")


def resolve(settings: Settings, chosen: Profile) -> Settings:
    """The settings, with the profile's value for each key that is not set."""
    return settings.model_copy(update=dict(taken(settings, chosen)))


def taken(settings: Settings, chosen: Profile) -> Mapping[str, Value]:
    """What `resolve` takes from the profile, for those who want to say so."""
    return {name: value for name, value in chosen.values.items() if getattr(settings, name) is None}
