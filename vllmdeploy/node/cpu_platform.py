"""vLLM's CPU backend over Ray and across hosts: an out-of-tree platform, active only when asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

SWITCH = "VLLMDEPLOY_CPU_PLATFORM"
"""`1` in a node's environment asks for it; vLLM would prefer it to CUDA otherwise."""

_COMMUNICATOR = "vllm.distributed.device_communicators.cpu_communicator"


def wanted() -> str | None:
    """vLLM's entry point: the dotted name of the platform to use, or None to stay out."""
    return f"{__name__}.CpuOverRay" if os.environ.get(SWITCH) == "1" else None


def _platform() -> type:
    base: Any = import_module("vllm.platforms.cpu").CpuPlatform

    def number(_: object, device_id: str) -> int:
        return int(device_id)

    def communicator(_: object) -> str:
        return f"{__name__}.AcrossHosts"

    attributes: dict[str, Any] = {
        "__module__": __name__,
        # Ray has no count of its own for ranks on processors: its nodes declare them as GPUs.
        "ray_device_key": "GPU",
        "device_control_id_to_physical_device_id": classmethod(number),
        "get_device_communicator_cls": classmethod(communicator),
    }
    return type("CpuOverRay", (base,), attributes)


def _communicator() -> type:
    base: Any = import_module(_COMMUNICATOR).CpuCommunicator

    def never(_: object) -> bool:
        """Ranks on two hosts agree on a name and still share no memory."""
        return False

    attributes: dict[str, Any] = {
        "__module__": __name__,
        "_all_group_ranks_share_shm_group_name": never,
    }
    return type("AcrossHosts", (base,), attributes)


_MADE: dict[str, Callable[[], type]] = {"CpuOverRay": _platform, "AcrossHosts": _communicator}


def __getattr__(name: str) -> Any:
    """Classes that extend vLLM's can only be made where vLLM is, when vLLM asks for them."""
    if name not in _MADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = _MADE[name]()
    return made
