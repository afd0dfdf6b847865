"""What a fault case measured, left where `make figures` looks."""

from __future__ import annotations

import json
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / ".bench"


def leave(name: str, figure: str, value: int, *, n: int, seed: int) -> None:
    """A count of what must not happen: the target is none."""
    record = {"id": name, "figure": figure, "value": value, "target": "0", "pass": value == 0}
    _FOLDER.mkdir(exist_ok=True)
    path = _FOLDER / f"fault-{name}.jsonl"
    path.write_text(json.dumps({**record, "n": n, "seed": seed}) + "\n", encoding="utf-8")
