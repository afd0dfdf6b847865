"""What a model in a folder of this machine needs, for the planner."""

from __future__ import annotations

from pathlib import Path

from vllmdeploy.errors import UsageError
from vllmdeploy.plan.capacity_model import ModelShape, parse_config
from vllmdeploy.tools import safetensors

_LARGEST_CONFIG = 10_000_000


def model_in(folder: Path) -> tuple[ModelShape, safetensors.Weights]:
    """Its shape and its tensors' sizes; no weight is read."""
    config = folder / "config.json"
    try:
        if config.stat().st_size > _LARGEST_CONFIG:
            raise UsageError(f"{config}: larger than any config.json")
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"{config}: {reason}", hint="capacity needs a folder with config.json and the weights"
        ) from error
    return parse_config(text, where=str(config)), safetensors.of_folder(folder)
