"""From the settings to what the planner wants: the one place where keys become specs."""

from __future__ import annotations

import sys
from typing import cast

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.host import Fleet
from vllmdeploy.plan.wanted import ExecutorChoice, RayAuth, Runtime, Wanted, WantedGroup
from vllmdeploy.tools.ray import RayPorts


def wanted_of(settings: Settings, fleet: Fleet, *, package: str) -> Wanted:
    runtime = cast("Runtime", settings.runtime)
    fronts = {host.group for host in fleet.fronts}
    return Wanted(
        cluster=settings.cluster_name,
        groups={name: _group(settings, fleet, name) for name in (*fleet.groups, *fronts)},
        ports=_ports(settings),
        package=package,
        model_path=settings.model_path,
        shm_size=str(settings.shm_size),
        ray_auth=cast("RayAuth", settings.ray_auth),
        ray_cpus=settings.ray_cpus,
        drain_s=settings.drain_s,
        executor=cast("ExecutorChoice", settings.executor),
        runtime=runtime,
        python=settings.vllm_python or (sys.executable if runtime == "process" else "python3"),
        cdi=settings.use_cdi,
        docker_arguments=settings.extra_docker_args,
        environment=settings.extra_env,
    )


def _group(settings: Settings, fleet: Fleet, name: str) -> WantedGroup:
    # A worker that brings itself up knows of no head.
    first = next((host.group for host in fleet.hosts if host.head), None)
    return WantedGroup(
        name=name,
        image=settings.image_for(name) or "",
        head_ip=settings.head_ip if name == first else None,
        interface=settings.network_interface,
        accelerator=settings.accelerator,
    )


def _ports(settings: Settings) -> RayPorts:
    return RayPorts(
        gcs=settings.ray_port,
        dashboard=settings.ray_dashboard_port,
        client=settings.ray_client_port,
        node_manager=settings.ray_node_manager_port,
        object_manager=settings.ray_object_manager_port,
        runtime_env_agent=settings.ray_runtime_env_agent_port,
        dashboard_agent_grpc=settings.ray_dashboard_agent_grpc_port,
        dashboard_agent=settings.ray_dashboard_agent_port,
        metrics=settings.ray_metrics_port,
        autoscaler_metrics=settings.ray_autoscaler_metrics_port,
        dashboard_metrics=settings.ray_dashboard_metrics_port,
        workers=(settings.ray_worker_ports.first, settings.ray_worker_ports.last),
    )
