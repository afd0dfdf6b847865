"""A model's folder whose weights have sizes and no content: what is read of them is the header."""

from __future__ import annotations

import json
from pathlib import Path

_VALUE_BYTES = 2


def lay(folder: Path, config: str, weights_bytes: int) -> None:
    """So many bytes in all, the same in every layer of the configuration, as a sparse file."""
    layers = json.loads(config)["num_hidden_layers"]
    size = weights_bytes // layers
    header = {
        f"model.layers.{layer}.mlp.up_proj.weight": {
            "dtype": "BF16",
            "shape": [size // _VALUE_BYTES],
            "data_offsets": [layer * size, (layer + 1) * size],
        }
        for layer in range(layers)
    }
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config, "utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + layers * size)
