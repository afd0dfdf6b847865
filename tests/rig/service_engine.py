"""Whether this machine has an engine for real models: built in CI, elsewhere only used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rig import base
from tests.rig.operate import Operator, operator
from tests.rig.rig import Rig

CANNOT = 3  # scripts/engine.sh: this machine cannot have vLLM for processors


def need_engine() -> None:
    if os.environ.get("CI") == "true":
        script = base.ENGINE.parent / "scripts/engine.sh"
        built = subprocess.run(("sh", script), capture_output=True, text=True, check=False)
        if built.returncode == CANNOT:
            pytest.skip(built.stderr.strip())
        assert built.returncode == 0, built.stderr
    elif not (base.ENGINE / "engine-stamp").exists():
        pytest.skip("there is no engine here: scripts/engine.sh makes it")


# vLLM fills in weights by itself (--load-format dummy), so a shape and a tokenizer are a model.
_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def make_tiny_model(name: str) -> None:
    folder = base.MODELS / name
    folder.mkdir(exist_ok=True)
    for file in (base.MODELS / "SmolLM2-135M-Instruct").glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(_SHAPE))


def serve_without_ray(
    rig: Rig, folder: Path, model: str, lines: Mapping[str, str] | None = None
) -> tuple[Operator, str]:
    """A tiny model over two hosts: the operator, and the API key that was shown once. `lines`: as
    for `Operator.writes_lines`."""
    made = operator(rig, folder)
    made.writes(
        MODEL_PATH=str(base.MODELS),
        EXECUTOR="mp",
        SHM_SIZE="256m",
        EXTRA_DOCKER_ARGS=base.docker_args(str(base.ENGINE)),
        EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1",
        EXTRA_VLLM_ARGS="--enforce-eager --load-format dummy",
        MAX_MODEL_LEN=256,
    )
    if lines is not None:
        made.writes_lines(lines)
    made.up()
    started = made.runs("start-service", model, "2", "--yes", limit_s=900)
    assert started.returncode == 0, started.stderr
    shown = next(line for line in started.stdout.splitlines() if line.startswith("API key"))
    return made, shown.split()[-1]
