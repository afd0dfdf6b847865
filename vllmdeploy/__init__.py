"""Operations for multi-node Ray clusters that serve language models with vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllmdeploy.batch.pipeline import run_pipeline
    from vllmdeploy.client.asynchronous import AsyncMultiVLLMClient
    from vllmdeploy.client.control_plane import (
        Completion,
        ControlPlaneManager,
        ExecutionInstance,
        RequestMetadata,
    )
    from vllmdeploy.client.synchronous import MultiVLLMClient, create_multi_vllm_client

__version__ = "0.1.0"

__all__ = [
    "AsyncMultiVLLMClient",
    "Completion",
    "ControlPlaneManager",
    "ExecutionInstance",
    "MultiVLLMClient",
    "RequestMetadata",
    "create_multi_vllm_client",
    "run_pipeline",
]

# The command line, a host's supervisor and the gateway all begin with this package: it imports
# nothing until one of these names is used.
_HOMES = {
    "AsyncMultiVLLMClient": "vllmdeploy.client.asynchronous",
    "Completion": "vllmdeploy.client.control_plane",
    "ControlPlaneManager": "vllmdeploy.client.control_plane",
    "ExecutionInstance": "vllmdeploy.client.control_plane",
    "MultiVLLMClient": "vllmdeploy.client.synchronous",
    "RequestMetadata": "vllmdeploy.client.control_plane",
    "create_multi_vllm_client": "vllmdeploy.client.synchronous",
    "run_pipeline": "vllmdeploy.batch.pipeline",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
