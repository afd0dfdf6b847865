"""The second start of a model that vLLM compiles beside the first, whose compiled parts the node
keeps: SmolLM2 with Ray on this machine; prints JSON lines.

Needs root, a C++ compiler, what `make setup` installs, and `scripts/engine.sh`.

    python bench/second_start.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.rig import claim, own_machine
from tests.rig.own_machine import REAL_MODEL, Machine
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT

_LIMIT_S = 840.0


def engine_took_s(machine: Machine) -> float:
    """From the start of its process to its first token, as the warden has it."""
    (status,) = Path(SYSTEM_STATE_ROOT, machine.cluster).glob("run/*ray*/status.json")
    engines = json.loads(status.read_text("utf-8"))["engines"]
    return float(engines[REAL_MODEL]["took_s"])


def start(machine: Machine, which: str) -> float:
    began = time.monotonic()
    machine.succeeds("start-service", REAL_MODEL, "1", "--yes", limit_s=_LIMIT_S)
    shown = {"what": f"{which} start", "seconds": round(time.monotonic() - began, 1)}
    took = engine_took_s(machine)
    print(json.dumps({**shown, "engine_s": round(took, 1)}), flush=True)
    return took


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = own_machine.real(Path(folder), claim.WORKTREE, "secondstart")
        machine.writes(
            EXTRA_ENV="'VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1'",
            EXTRA_VLLM_ARGS="",
            MAX_MODEL_LEN="256",
        )
        try:
            machine.succeeds("up", "--yes")
            first = start(machine, "first")
            machine.succeeds("stop-service", REAL_MODEL, "--yes")
            second = start(machine, "second")
        finally:
            machine.goes()
    figure = {
        "id": "second-start",
        "figure": "second start of a model that compiles, times the first",
        "value": round(second / first, 3),
        "first_s": round(first, 1),
        "second_s": round(second, 1),
    }
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
