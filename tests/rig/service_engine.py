"""Whether this machine has an engine for real models: built in CI, elsewhere only used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.rig import base

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
