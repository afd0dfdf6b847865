"""Seconds from a fault to the next correct answer of a model over three hosts, beside a cold start
of the same service in the same run; prints JSON lines. `engine_s` is the part of the cold start
that the engine itself took, which is what somebody who types its command waits for.

Needs root, Docker, what `make setup` installs, and `scripts/engine.sh`.

    python bench/recovery.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.rig import base, look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import STATE, Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.test_service_on_hosts import FLEET, MODEL, PROMPT, ask

# How much longer than a cold start each may take.
GOALS = {"worker killed": 30.0, "head killed": 45.0, "host rebooted": 60.0}
_LIMIT_S = 300.0


def made(rig: Rig, folder: Path) -> Operator:
    one = operator(rig, folder)
    one.writes(
        MODEL_PATH=str(base.MODELS),
        SHM_SIZE="256m",
        EXTRA_DOCKER_ARGS=base.docker_args(str(base.ENGINE)),
        EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1",
        EXTRA_VLLM_ARGS="--enforce-eager",
        MAX_MODEL_LEN=512,
        RAY_CPUS=2,
    )
    return one


def answers(rig: Rig, key: str) -> bool:
    try:
        return "Paris" in ask(rig, "/generate", {"prompt": PROMPT}, key)["text"]
    except OSError:
        return False


def kill(rig: Rig, *, head: bool) -> None:
    host = rig.head if head else rig.workers[-1]
    container = look.containers(host)[f"vllm-ray-{'head' if head else 'worker'}"]
    host.sh(f"kill -KILL {container.pid}")


def recovery(rig: Rig, key: str, fault: Callable[[], None]) -> float:
    """From before the fault; an answer that was out before anybody noticed does not count."""
    began = time.monotonic()
    fault()
    until("the API stops answering", lambda: not answers(rig, key), limit_s=60, every_s=0.2)
    until("the API answers again", lambda: answers(rig, key), limit_s=_LIMIT_S, every_s=0.5)
    return time.monotonic() - began


def engine_took_s(rig: Rig) -> float:
    status = json.loads(rig.head.sh(f"cat {STATE}/run/*ray*/status.json").stdout)
    return float(status["engines"][MODEL]["took_s"])


def say(what: str, seconds: float, cold_s: float | None = None, **more: float) -> None:
    shown: dict[str, object] = {"what": what, "seconds": round(seconds, 1)}
    shown |= {name: round(value, 1) for name, value in more.items()}
    if cold_s is not None:
        beyond = seconds - cold_s
        shown |= {"beyond_cold_start": round(beyond, 1), "goal": GOALS[what]}
    print(json.dumps(shown), flush=True)


def measure(rig: Rig, folder: Path) -> None:
    one = made(rig, folder)
    one.up()
    began = time.monotonic()
    started = one.runs("start-service", MODEL, "3", "--yes", limit_s=600)
    if started.returncode != 0:
        raise SystemExit(started.stderr)
    cold_s = time.monotonic() - began
    line = next(line for line in started.stdout.splitlines() if line.startswith("API key"))
    key = line.split()[-1]
    say("cold start", cold_s, engine_s=engine_took_s(rig))
    faults: dict[str, Callable[[], None]] = {
        "worker killed": lambda: kill(rig, head=False),
        "head killed": lambda: kill(rig, head=True),
        "host rebooted": rig.workers[0].reboot,
    }
    for what, fault in faults.items():
        say(what, recovery(rig, key, fault), cold_s)
        until("the cluster is whole", one.is_whole, limit_s=120, every_s=1)


def main() -> None:
    profiles: tuple[Profile, ...] = FLEET
    rig = rigs.start(profiles)
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(rig, Path(folder))
    finally:
        rig.remove()


if __name__ == "__main__":
    main()
