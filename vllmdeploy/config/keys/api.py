"""Keys about the gateway and where models come from."""

from __future__ import annotations

from pydantic import Field

from vllmdeploy.config.keys.types import (
    ApiAuth,
    HostList,
    ListenHost,
    LocalPath,
    Memory,
    ModelName,
    Networks,
    Routing,
    Scheduling,
    Section,
    Url,
)
from vllmdeploy.config.values import Size


class Gateway(Section):
    """The API"""

    api_host: ListenHost = Field(
        "0.0.0.0",  # noqa: S104 - an API for other machines, closed by keys unless API_AUTH=none
        description="Address that the API listens on.",
        examples=["0.0.0.0"],  # noqa: S104
    )
    api_auth: ApiAuth = Field(
        "keys",
        description="Who may call: keys, or none together with API_ALLOW.",
        examples=["keys"],
    )
    api_allow: Networks = Field(
        (),
        description="Networks that may call, in CIDR form, apart by commas. Not set: all.",
        examples=["10.0.0.0/8,192.168.0.0/16"],
    )
    api_keys_file: LocalPath | None = Field(
        None,
        description="File of API keys, a line each: KEY, NAME:KEY or NAME:sha256:HEX. "
        "Not set: `up` makes one key and shows it once.",
        examples=["api_keys.txt"],
    )
    admin_key_file: LocalPath | None = Field(
        None,
        description="File with the key of /admin. Not set: `up` makes one and shows it once.",
        examples=["admin_key.txt"],
    )
    gateway_hosts: HostList = Field(
        (),
        description="Hosts that run the gateway, apart by commas; those that are not in the list "
        "of hosts run nothing else, from IMAGE_GATEWAY or IMAGE. Not set: the head.",
        examples=["gpu-01,front-01"],
    )
    api_files_size: Memory = Field(
        Size(10 << 30),
        description="The most that the files of /v1/files and /v1/batches may take on the disk of "
        "a gateway.",
        examples=["50g"],
    )
    default_model: ModelName | None = Field(
        None,
        description="Model of a request that names none. Not set: the only one served.",
        examples=["Llama-3-8B-instruct"],
    )
    routing_strategy: Routing = Field(
        "adaptive",
        description="Which instance gets a request: adaptive, round_robin, random, "
        "least_inflight (or load_balanced), power_of_two, consistent_hash, prefix_affinity, "
        "weighted, cost_optimized, or your own as package.module:object.",
        examples=["prefix_affinity"],
    )
    scheduling_policy: Scheduling = Field(
        "adaptive",
        description="Who is next when all instances are busy: adaptive, fifo, priority, "
        "slo_aware, cost_optimized, or your own as package.module:object.",
        examples=["priority"],
    )


class Downloads(Section):
    """Where models come from"""

    hf_endpoint: Url | None = Field(
        None,
        description="Hugging Face or a mirror of it. Not set: https://huggingface.co.",
        examples=["https://hf-mirror.com"],
    )
    hf_token_file: LocalPath | None = Field(
        None,
        description="File with a Hugging Face token, for gated models.",
        examples=["~/.cache/huggingface/token"],
    )
    modelscope_endpoint: Url | None = Field(
        None,
        description="Another site of ModelScope. Not set: https://modelscope.cn.",
        examples=["https://www.modelscope.ai"],
    )
    modelscope_token_file: LocalPath | None = Field(
        None,
        description="File with a ModelScope token, for models that need a login.",
        examples=["~/.config/modelscope.token"],
    )
