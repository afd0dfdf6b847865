"""Finds values that are each right but do not go together."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from vllmdeploy.config.fleet import image_key
from vllmdeploy.config.values import PortRange, suggestion

if TYPE_CHECKING:
    from vllmdeploy.config.keys.all import Settings

Conflict = tuple[tuple[str, ...], str]
"""The keys that take part, the one to blame first, and what is wrong."""


def conflicts(settings: Settings, groups: Collection[str] | None) -> Iterator[Conflict]:
    """`groups` are those of the nodes file, None where there is no such file."""
    yield from _ports(settings)
    if settings.api_auth == "none" and not settings.api_allow:
        yield (
            ("API_AUTH", "API_ALLOW"),
            "none needs API_ALLOW, the networks that may call without a key",
        )
    tokens, sequences = settings.max_num_batched_tokens, settings.max_num_seqs
    if tokens is not None and sequences is not None and tokens < sequences:
        yield (
            ("MAX_NUM_BATCHED_TOKENS", "MAX_NUM_SEQS"),
            f"{tokens} is less than MAX_NUM_SEQS, {sequences}",
        )
    if groups is not None:
        known = {image_key(group) for group in groups}
        for suffix in settings.images:
            if suffix not in known:
                near = suggestion(f"IMAGE_{suffix}", [f"IMAGE_{key}" for key in known])
                yield (f"IMAGE_{suffix}",), f"no group of this name among the hosts{near}"


def port_ranges(settings: Settings) -> dict[str, PortRange]:
    """Everything that our own programs listen on. VLLM_PORTS may lie inside ENGINE_PORTS."""
    single = (
        *("api_port", "ray_port", "ray_dashboard_port", "ray_client_port"),
        *("ray_node_manager_port", "ray_object_manager_port", "ray_runtime_env_agent_port"),
        *("ray_dashboard_agent_grpc_port", "ray_metrics_port", "ray_dashboard_agent_port"),
        *("ray_autoscaler_metrics_port", "ray_dashboard_metrics_port"),
    )
    ports: dict[str, int] = {name: getattr(settings, name) for name in single}
    return {
        **{name.upper(): PortRange(port, port) for name, port in ports.items()},
        "RAY_WORKER_PORTS": settings.ray_worker_ports,
        "ENGINE_PORTS": settings.engine_ports,
    }


def _ports(settings: Settings) -> Iterator[Conflict]:
    ranges = port_ranges(settings)
    chosen = {name.upper() for name in settings.model_fields_set}
    for pair in combinations(ranges, 2):
        shared = ranges[pair[0]].overlap(ranges[pair[1]])
        if shared is not None:
            # Blame what the user wrote, not a default that was there before.
            key, other = sorted(pair, key=lambda name: name not in chosen)
            yield (key, other), f"{shared} is taken by {_named(other, ranges[other])}"
    for port in settings.vllm_ports or ():
        for key, taken in ranges.items():
            if key != "ENGINE_PORTS" and port in taken:
                yield ("VLLM_PORTS", key), f"{port} is taken by {_named(key, taken)}"


def _named(key: str, taken: PortRange) -> str:
    return key if taken.first == taken.last else f"{key} ({taken})"
