"""The seed's Compose file: engines that share a card by MPS, as `export compose` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml  # type: ignore[import-untyped]  # it brings no types, and only tests read YAML

from vllmdeploy.config.settings import load
from vllmdeploy.workflows.export_files import export_instances
from vllmdeploy.workflows.instances_asked import asked_of


def written(folder: Path, **environ: str) -> tuple[str, dict[str, Any]]:
    config = folder / "config.env"
    config.write_text("HEAD_HOST=gpu-01\nHEAD_IP=10.0.0.1\nIMAGE=vllm:1\nACCELERATOR=nvidia\n")
    given = load(
        config_path=config,
        environ={"WORKERS": "2", "GPU_MEMORY_UTILIZATION": "0.9", **environ},
        bare_names=True,
        accelerators=("nvidia",),
    )
    asked = asked_of(
        given.settings, "Qwen3-0.6B", profile_name=None, count=None, hosts=(), task="generate"
    )
    (path, *_) = export_instances(given, asked.wanted, "compose", folder, cards=1, force=False)
    services: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return path.read_text(), services


def test_two_workers_share_a_card_as_the_seeds_file_has_it(tmp_path: Path) -> None:
    text, services = written(tmp_path)
    assert "# Before all: vllmdeploy mps start --hosts gpu-01\n" in text
    for number in (1, 2):
        one = services[f"Qwen3-0.6B-{number}"]
        assert one["ipc"] == "host"
        volumes = cast("list[str]", one["volumes"])
        assert "/tmp/nvidia-mps/card-0:/tmp/nvidia-mps/card-0" in volumes
        assert "/tmp/nvidia-log/card-0:/tmp/nvidia-log/card-0" in volumes
        assert one["environment"]["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/nvidia-mps/card-0"
        command = cast("list[str]", one["command"])
        assert command[command.index("--gpu-memory-utilization") + 1] == "0.45"
        assert "--disable-custom-all-reduce" in command
    assert "Qwen3-0.6B-1" in services["Qwen3-0.6B-2"]["depends_on"]


def test_the_seeds_way_back_is_one_process_without_mps(tmp_path: Path) -> None:
    text, services = written(tmp_path, WORKERS="1", CUDA_MPS_ENABLE="0")
    assert "mps" not in text.lower()
    assert all(one.get("ipc") is None for one in services.values())
