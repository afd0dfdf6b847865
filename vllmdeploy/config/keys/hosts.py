"""Keys about hosts, how they are reached, and what runs on them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vllmdeploy.config.keys.types import (
    Arguments,
    ClusterName,
    Count,
    Environment,
    Executor,
    HostFolder,
    HostPlace,
    Image,
    IpAddress,
    LocalPath,
    Port,
    Runtime,
    Section,
    SudoMode,
    Switch,
    UserName,
    Vendor,
)


class Hosts(Section):
    """Hosts and SSH"""

    cluster_name: ClusterName = Field(
        "vllm",
        description="Begins the names of all containers, units and state folders.",
        examples=["vllm"],
    )
    head_host: HostPlace | None = Field(
        None,
        description="[user@]host[:port] of the head. Not set: this machine.",
        examples=["gpu-01"],
    )
    head_ip: IpAddress | None = Field(
        None,
        description="The head's address for the other hosts. Not set: found by asking all hosts.",
        examples=["10.0.0.1"],
    )
    worker_nodes_file: LocalPath = Field(
        Path("worker_nodes.txt"),
        description="List of the other hosts; a relative path starts beside config.env.",
        examples=["worker_nodes.txt"],
    )
    ssh_user: UserName | None = Field(
        None,
        description="User where a host's line names none. Not set: ~/.ssh/config, then yours.",
        examples=["deploy"],
    )
    ssh_port: Port | None = Field(
        None,
        description="Port where a host's line names none. Not set: ~/.ssh/config, then 22.",
        examples=["22"],
    )
    ssh_key: LocalPath | None = Field(
        None,
        description="Private key file. Not set: the agent, ~/.ssh/config and the usual files.",
        examples=["~/.ssh/id_ed25519"],
    )
    ssh_known_hosts: LocalPath | None = Field(
        None,
        description="File of trusted host keys, which `trust` writes. Not set: the user's own.",
        examples=["known_hosts"],
    )
    ssh_password_file: LocalPath | None = Field(
        None,
        description="File (mode 0600) with the password for SSH and sudo, where keys are not used.",
        examples=["~/.ssh/fleet-password"],
    )
    sudo: SudoMode = Field(
        "auto",
        description="Use sudo on hosts: auto (where it must), never, always.",
        examples=["auto"],
    )


class Containers(Section):
    """What runs on the hosts"""

    image: Image | None = Field(
        None,
        description="Image of all groups. Not set: the accelerator's usual one. "
        "IMAGE_<GROUP> is the image of one group.",
        examples=["vllm/vllm-openai:v0.11.0"],
    )
    runtime: Runtime = Field(
        "docker",
        description="What carries a node: docker, process (this machine, no Docker), systemd.",
        examples=["docker"],
    )
    vllm_python: HostFolder | None = Field(
        None,
        description="Interpreter with vLLM on the hosts, for RUNTIME process and systemd.",
        examples=["/opt/vllm/bin/python"],
    )
    executor: Executor = Field(
        "auto",
        description="How a model spans hosts: auto, ray, or mp (vLLM's own, without Ray).",
        examples=["auto"],
    )
    drain_s: Count = Field(
        30,
        description="Seconds that requests at work get to end before their engine is stopped.",
        examples=["120"],
    )
    accelerator: Vendor = Field(
        "auto",
        description="Kind of cards: auto, or a vendor as `devices` names it.",
        examples=["hygon"],
    )
    use_cdi: Switch = Field(
        False,
        description="Hand cards to containers by CDI names (Docker 25, podman) "
        "instead of the vendor's own way.",
        examples=["1"],
    )
    extra_docker_args: Arguments = Field(
        (),
        description="More arguments for `docker run`, quoted as in a shell.",
        examples=["--cap-add IPC_LOCK"],
    )
    extra_vllm_args: Arguments = Field(
        (),
        description="More arguments for `vllm serve`, quoted as in a shell.",
        examples=["--enable-prefix-caching"],
    )
    extra_env: Environment = Field(
        default_factory=dict[str, str],
        description="More variables for containers, NAME=VALUE apart by blanks or commas. "
        "Never a secret: they show in `ps`.",
        examples=["NCCL_DEBUG=INFO NCCL_IB_HCA='mlx5_0,mlx5_1'"],
    )
