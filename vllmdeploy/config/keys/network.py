"""Keys about networks and every port that Ray opens."""

from __future__ import annotations

from pydantic import Field

from vllmdeploy.config.keys.types import (
    Count,
    Endpoint,
    Interface,
    Ports,
    RayAuth,
    RayPort,
    Section,
)
from vllmdeploy.config.values import PortRange


class RayCluster(Section):
    """Network and Ray; all ports but one are below the range that kernels hand out themselves"""

    network_interface: Interface = Field(
        "auto",
        description="Interface between the hosts: auto is the fastest that joins them all.",
        examples=["ib0"],
    )
    ray_address: Endpoint | None = Field(
        None,
        description="HOST:PORT of a Ray cluster that is not ours: services are attached to it, "
        "its containers never touched.",
        examples=["10.0.0.1:6379"],
    )
    ray_auth: RayAuth = Field(
        "auto",
        description="Ray's token authentication: auto (where Ray has it), token, none.",
        examples=["token"],
    )
    ray_cpus: Count | None = Field(
        None,
        description="CPUs that each host offers to Ray. Not set: all.",
        examples=["16"],
    )
    ray_port: RayPort = Field(
        6379, description="Ray's head service (GCS), on the head.", examples=["6379"]
    )
    ray_dashboard_port: RayPort = Field(
        8265,
        description="Ray's dashboard, on the head, loopback only.",
        examples=["8265"],
    )
    ray_client_port: RayPort = Field(
        10001, description="Ray's client server, on the head.", examples=["10001"]
    )
    ray_node_manager_port: RayPort = Field(
        10010, description="Ray's node manager, on every host.", examples=["10010"]
    )
    ray_object_manager_port: RayPort = Field(
        10011, description="Ray's object manager, on every host.", examples=["10011"]
    )
    ray_runtime_env_agent_port: RayPort = Field(
        10012, description="Ray's runtime environment agent, on every host.", examples=["10012"]
    )
    ray_dashboard_agent_grpc_port: RayPort = Field(
        10013, description="Ray's dashboard agent (gRPC), on every host.", examples=["10013"]
    )
    ray_metrics_port: RayPort = Field(
        10014, description="Ray's metrics for Prometheus, on every host.", examples=["10014"]
    )
    ray_autoscaler_metrics_port: RayPort = Field(
        10015, description="Metrics of Ray's autoscaler, on the head.", examples=["10015"]
    )
    ray_dashboard_metrics_port: RayPort = Field(
        10016, description="Metrics of Ray's dashboard, on the head.", examples=["10016"]
    )
    ray_dashboard_agent_port: RayPort = Field(
        52365, description="Ray's dashboard agent (HTTP), on every host.", examples=["52365"]
    )
    ray_worker_ports: Ports = Field(
        PortRange(20000, 20999),
        description="Ports of Ray's worker processes, LOW-HIGH, on every host.",
        examples=["20000-20999"],
    )
    engine_ports: Ports = Field(
        PortRange(8100, 8199),
        description="Ports of the engines behind the gateway, LOW-HIGH, on every host.",
        examples=["8100-8199"],
    )
