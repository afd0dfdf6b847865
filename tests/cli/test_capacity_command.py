"""`capacity` on a model folder whose weights are a hole in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.effects.test_hub_headers import hub
from vllmdeploy.cli.capacity import capacity
from vllmdeploy.cli.context import World
from vllmdeploy.errors import UsageError

app = typer.Typer()
app.command()(capacity)

CONFIG = {
    "model_type": "llama",
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
}
LAYER = {
    "self_attn.q_proj": [4096, 4096],
    "self_attn.k_proj": [1024, 4096],
    "self_attn.v_proj": [1024, 4096],
    "self_attn.o_proj": [4096, 4096],
    "mlp.gate_proj": [14336, 4096],
    "mlp.up_proj": [14336, 4096],
    "mlp.down_proj": [4096, 14336],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "Llama-3.1-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = {"model.embed_tokens.weight": [128256, 4096], "lm_head.weight": [128256, 4096]}
    for layer in range(32):
        for name, size in LAYER.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = size
    header, offset = {}, 0
    for name, (rows, columns) in shapes.items():
        end = offset + 2 * rows * columns
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


def run(*words: str, as_json: bool = False) -> str:
    result = CliRunner().invoke(app, words, obj=World(json=as_json), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_answer_is_one_short_text(model: Path) -> None:
    assert run(str(model), "--memory", "24", "--cards", "4") == (
        "Llama-3.1-8B: fits\n"
        "  model    llama, 32 layers, 8 KV heads, 14.96 GiB of weights\n"
        "  on       2 cards of 24 GiB: tensor parallel 2, pipeline parallel 1\n"
        "  a card   7.48 GiB weights, 2.0 to 4.9 GiB beside them, 9.3 to 12.2 GiB for the cache\n"
        "  a token  65,536 bytes of cache on each card\n"
        "  context  up to 131,072 tokens of the model's 131,072\n"
        "  users    74.1 of 2,048 tokens, 18.5 of 8,192 tokens, 4.6 of 32,768 tokens, "
        "1.2 of 131,072 tokens\n"
        "  flags    --tensor-parallel-size 2 --pipeline-parallel-size 1 "
        "--max-model-len 131072 --gpu-memory-utilization 0.92\n"
    )


def test_what_cannot_be_says_why_and_what_can(model: Path) -> None:
    said = run(str(model), "--memory", "24", "--cards", "4", "--tp", "3").splitlines()
    assert said[0] == (
        "Llama-3.1-8B: does not fit: 32 attention heads cannot be divided by tensor parallel size 3"
    )
    assert said[-1] == (
        "  better   --tensor-parallel-size 2 --pipeline-parallel-size 1 "
        "--max-model-len 131072 --gpu-memory-utilization 0.92"
    )
    assert not [line for line in said if line.startswith(("  context", "  flags"))]


def test_a_model_too_large_promises_nothing(model: Path) -> None:
    found = json.loads(run(str(model), "--memory", "16", as_json=True))
    assert (found["verdict"], found["flags"], found["suggested"]) == ("does not fit", None, None)
    assert (found["max_model_len"], found["users"]) == (0, [])


def test_json_names_the_bytes_of_a_token(model: Path) -> None:
    found = json.loads(run(str(model), "--memory", "24", as_json=True))
    assert found["kv_bytes_per_token"] == 131_072
    assert found["verdict"] == "fits with a shorter context"
    assert found["weights_bytes_by_dtype"] == {"BF16": found["weights_bytes"]}
    assert found["exact"] is True
    eight = json.loads(run(str(model), "--memory", "24", "--fp8-cache", as_json=True))
    assert eight["kv_bytes_per_token"] == 65_536


def test_a_model_of_model_path_goes_by_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (Path.cwd() / "config.env").write_text(f"MODEL_PATH={model.parent}\n")
    for name in ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"):
        assert run(name, "--memory", "80").startswith("Llama-3.1-8B: fits\n")


def test_more_ranks_than_cards_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="--tp 4 x --pp 1 needs 4 cards; --cards 2 x --hosts 1"):
        run(str(model), "--memory", "24", "--cards", "2", "--tp", "4")


def test_a_tensor_parallel_size_may_span_hosts(model: Path) -> None:
    words = ("--memory", "24", "--cards", "2", "--hosts", "2", "--tp", "4")
    found = json.loads(run(str(model), *words, as_json=True))
    assert (found["tensor_parallel"], found["pipeline_parallel"]) == (4, 1)


def test_a_repository_is_asked_at_the_hub_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = {"weight_map": {"a": "1.safetensors"}}
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "1.safetensors": len(header).to_bytes(8, "little") + header + bytes(4),
    }
    with hub(files) as (repository, _):
        (tmp_path / "config.env").write_text(f"HF_ENDPOINT={repository.endpoint}\n")
        found = json.loads(run("owner/model", "--memory", "24", as_json=True))
    assert (found["weights_bytes"], found["kv_bytes_per_token"]) == (4, 131_072)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        run(str(tmp_path), "--memory", "24")
    assert str(raised.value) == (
        f"{tmp_path}/config.json: No such file or directory\n"
        "  -> capacity needs a folder with config.json and the weights"
    )
