"""The keys that the seed documents use; they keep their meaning."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vllmdeploy.config.keys.types import (
    BigCount,
    CardCount,
    Count,
    HostFolder,
    ListenHost,
    LocalPath,
    Memory,
    Method,
    ModelFolder,
    Port,
    PortList,
    Section,
    Share,
    Switch,
)
from vllmdeploy.config.values import Size


class Deployment(Section):
    """Paths and the service"""

    project_path: LocalPath | None = Field(
        None,
        description="Folder on this machine for generated scripts. Not set: the current folder.",
        examples=["/opt/vllm-deploy"],
    )
    model_path: ModelFolder = Field(
        "/data/models",
        description="Folder of the models on every host; a model lives in MODEL_PATH/NAME.",
        examples=["/data/models"],
    )
    default_tp_size: CardCount = Field(
        0,
        description="Cards that `start-service` spreads a model over; 0 means all cards.",
        examples=["8"],
    )
    default_batch_size: Count = Field(
        32,
        description="Prompts of one /batch_generate call at work at once, per instance.",
        examples=["32"],
    )
    quantization: Method = Field(
        "none",
        description="How weights are quantized: none, int8, int4, or a method that vLLM knows.",
        examples=["int8"],
    )
    shm_size: Memory = Field(
        Size(16 << 30),
        description="Shared memory of a container; more helps large batches.",
        examples=["32g"],
    )
    api_port: Port = Field(8000, description="Port of the API on the head.", examples=["8000"])


class Engine(Section):
    """The engine, for instances and rerank; not set: the profile of the command"""

    workers: Count | None = Field(
        None,
        description="Engines that share a card, or a set of cards (instances, rerank).",
        examples=["2"],
    )
    max_num_seqs: Count | None = Field(
        None,
        description="Sequences that one engine works on at once.",
        examples=["1024"],
    )
    max_num_batched_tokens: BigCount | None = Field(
        None,
        description="Tokens in one step of one engine; at least MAX_NUM_SEQS.",
        examples=["32768"],
    )
    gpu_memory_utilization: Share | None = Field(
        None,
        description="Share of a card's memory that its engines may use together.",
        examples=["0.9"],
    )
    max_workers: Count | None = Field(
        None,
        description="Rendering threads of a rerank engine, and the size of a client's pool.",
        examples=["8"],
    )
    tensor_parallel_size: Count | None = Field(
        None,
        description="Cards of one instance (instances, rerank).",
        examples=["2"],
    )
    max_model_len: BigCount | None = Field(
        None,
        description="Longest context in tokens. Not set: what the model allows.",
        examples=["8192"],
    )


class SharedCards(Section):
    """Several processes on one card (CUDA MPS)"""

    cuda_mps_enable: Switch | None = Field(
        None,
        description="Let engines share cards by CUDA MPS; 0: one engine per card. Not set: 1.",
        examples=["1"],
    )
    cuda_mps_pipe_directory: HostFolder = Field(
        "/tmp/nvidia-mps",  # noqa: S108 - NVIDIA's own default, which clients look for
        description="Folder of the MPS daemon's pipes on a host.",
        examples=["/tmp/nvidia-mps"],  # noqa: S108
    )
    cuda_mps_log_directory: HostFolder = Field(
        "/tmp/nvidia-log",  # noqa: S108 - the seed's value
        description="Folder of the MPS daemon's logs on a host.",
        examples=["/tmp/nvidia-log"],  # noqa: S108
    )
    vllm_use_mps: Switch | None = Field(
        None,
        description="The same for vLLM alone: 0 keeps engines away from MPS. Not set: 1.",
        examples=["1"],
    )
    vllm_disable_custom_all_reduce: Switch | None = Field(
        None,
        description="Turn vLLM's own all-reduce off. Not set: off under MPS.",
        examples=["1"],
    )


class Clients(Section):
    """Several instances, the balancing client and batches"""

    use_multi_vllm: Switch = Field(
        True,
        description="Spread a pipeline's requests over all VLLM_PORTS; 0 uses the first only.",
        examples=["true"],
    )
    vllm_ports: PortList | None = Field(
        None,
        description="Ports of the instances. Not set: the profile's, then ENGINE_PORTS.",
        examples=["8001,8002,8003,8004"],
    )
    vllm_host: ListenHost = Field(
        "localhost",
        description="Host on which a client looks for the instances.",
        examples=["localhost"],
    )
    input_jsonl: LocalPath = Field(
        Path("data/tasks.jsonl"),
        description="Input of a batch, one JSON object a line.",
        examples=["data/tasks.jsonl"],
    )
    output_dir: LocalPath = Field(
        Path("outputs"),
        description="Folder for a batch's results.",
        examples=["outputs"],
    )
    font_path: LocalPath | None = Field(
        None,
        description="Font file for the plots of a batch's report.",
        examples=["/usr/share/fonts/NotoSansCJK-Regular.ttc"],
    )
