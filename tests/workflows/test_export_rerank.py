"""The rerank service as a Compose file: the seed's port and workers, what the model needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types, and only tests read YAML

from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World


def exported(folder: Path, *words: str, **environ: str) -> dict[str, Any]:
    config = folder / "config.env"
    lines = ("HEAD_HOST=gpu-01", "HEAD_IP=10.0.0.1", "IMAGE=vllm:1", "ACCELERATOR=nvidia")
    config.write_text("\n".join((*lines, f"MODEL_PATH={folder}/models", "")), "utf-8")
    (folder / "models").mkdir(exist_ok=True)
    argv = ["--config", str(config), "export", "compose", *words, "--to", str(folder / "out")]
    with pytest.raises(SystemExit) as ended:
        main(argv, World(environ=environ))
    assert not ended.value.code
    text = (folder / "out/gpu-01/compose.yaml").read_text("utf-8")
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def after(service: dict[str, Any], flag: str) -> str:
    command = cast("list[str]", service["command"])
    return command[command.index(flag) + 1]


def test_it_is_the_profile_s_service_on_the_seed_s_port(tmp_path: Path) -> None:
    services = exported(tmp_path, "Qwen3-Reranker-4B", "--rerank")
    assert set(services) == {"Qwen3-Reranker-4B-1", "Qwen3-Reranker-4B-2", "gateway"}
    assert after(services["gateway"], "--listen") == "0.0.0.0:8888"
    for number in (1, 2):
        one = services[f"Qwen3-Reranker-4B-{number}"]
        assert one["ipc"] == "host"
        assert after(one, "--gpu-memory-utilization") == "0.45"
        assert after(one, "--max-num-seqs") == "1024"
        assert after(one, "--runner") == "pooling"
        assert "Qwen3ForSequenceClassification" in after(one, "--hf-overrides")
        assert "<Instruct>: " in after(one, "--chat-template")


def test_what_is_set_wins(tmp_path: Path) -> None:
    words = ("Qwen/Qwen3-Reranker-0.6B", "--rerank", "--profile", "low-resource")
    services = exported(tmp_path, *words, VLLMDEPLOY_API_PORT="8000", WORKERS="3")
    assert len(services) == 4
    assert after(services["gateway"], "--listen") == "0.0.0.0:8000"
    assert after(services["Qwen3-Reranker-0.6B-3"], "--gpu-memory-utilization") == "0.2"


def test_another_model_is_what_its_own_config_says_where_it_lies_here(tmp_path: Path) -> None:
    folder = tmp_path / "models/bge-reranker-v2-gemma"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["GemmaForCausalLM"]}')
    services = exported(tmp_path, "bge-reranker-v2-gemma", "--rerank", "--count", "1")
    assert "no_post_processing" in after(services["bge-reranker-v2-gemma-1"], "--hf-overrides")
    plain = exported(tmp_path, "all-MiniLM-L6-v2", "--rerank", "--count", "1", "--force")
    assert "--hf-overrides" not in plain["all-MiniLM-L6-v2-1"]["command"]
    assert after(plain["all-MiniLM-L6-v2-1"], "--runner") == "pooling"


def test_a_profile_alone_is_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "compose", "m", "--profile", "production", "--to", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        main(words, World(environ={}))
    assert "--profile goes with --rerank" in capsys.readouterr().err
