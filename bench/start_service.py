"""`start-service` over three hosts beside its engine's own command by hand, in interleaved pairs;
prints JSON lines.

By hand: `docker exec` in the head's container with the words and the variables that the service's
engine had, asked every half second until it answers a prompt as it should. The gateway, the keys
and the plan, which our command makes and checks besides, are not typed. Needs root, Docker, what
`make setup` installs, and `scripts/engine.sh`.

    python bench/start_service.py --pairs 3
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.recovery import made
from tests.rig import look
from tests.rig import rig as rigs
from tests.rig.host import Host
from tests.rig.operate import Operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.test_service_on_hosts import FLEET, MODEL, PROMPT, ask

RATIO, SECONDS = 1.1, 5.0
_HEAD = "vllm-ray-head"
_LIMIT_S = 300.0


@dataclass(frozen=True)
class Engine:
    """What the operator types: its words and its variables."""

    argv: tuple[str, ...]
    environment: dict[str, str]

    def word(self, flag: str) -> str:
        return self.argv[self.argv.index(flag) + 1]


def engine_of(head: Host) -> Engine:
    """Of the engine that runs there now."""
    found = head.sh("pgrep -of 'vllm.entrypoints.*--distributed-executor-backend ray'").stdout
    folder = f"/proc/{found.split()[0]}"
    argv, environ = (
        head.sh(f"tr '\\0' '\\n' < {folder}/{name}").stdout.splitlines()
        for name in ("cmdline", "environ")
    )
    pairs = (line.partition("=") for line in environ)
    return Engine(tuple(argv), {name: value for name, _, value in pairs if name})


def by_tool(one: Operator, keys: list[str]) -> float:
    """From the command until an answer through the gateway, which is asked once it has ended."""
    began = time.monotonic()
    done = one.runs("start-service", MODEL, "3", "--yes", limit_s=_LIMIT_S)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    keys += [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("API key")]
    text = ask(one.rig, "/generate", {"prompt": PROMPT, "max_tokens": 4}, keys[0])["text"]
    assert "Paris" in text, text
    return time.monotonic() - began


def by_hand(rig: Rig, engine: Engine) -> float:
    """From the command until an answer of the engine."""
    head = rig.head
    url = f"http://{engine.word('--host')}:{engine.word('--port')}/v1/completions"
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "temperature": 0})
    asking = f"curl -sf -m 30 -H 'Content-Type: application/json' -d {shlex.quote(body)} {url}"
    variables = " ".join(
        f"-e {shlex.quote(f'{name}={value}')}" for name, value in engine.environment.items()
    )

    def answers() -> bool:
        return "Paris" in head.sh(f"{asking} || true").stdout

    began = time.monotonic()
    head.sh(f"docker exec -d {variables} {_HEAD} {shlex.join(engine.argv)}")
    until("the engine answers", answers, limit_s=_LIMIT_S, every_s=0.5)
    took = time.monotonic() - began
    head.sh("pkill -TERM -of 'vllm.entrypoints.*--distributed-executor-backend ray'")
    until("all ranks are gone", lambda: not _ranks(rig), limit_s=60)
    return took


def _ranks(rig: Rig) -> list[str]:
    return [line for host in rig.hosts for line in look.processes(host) if "ray::RayWorker" in line]


def measure(rig: Rig, folder: Path, pairs: int) -> tuple[list[float], list[float]]:
    one, keys = made(rig, folder), list[str]()
    one.up()
    by_tool(one, keys)  # Neither counts what is read from the disk for the first time
    engine = engine_of(rig.head)
    _stop(one)
    tool: list[float] = []
    hand: list[float] = []
    for number in range(pairs):
        for who in ("tool", "hand") if number % 2 else ("hand", "tool"):
            if who == "tool":
                tool.append(by_tool(one, keys))
                _stop(one)
            else:
                hand.append(by_hand(rig, engine))
                until("Ray has its cards back", lambda: _is_startable(one), limit_s=60)
        shown = {"pair": number + 1, "tool_s": round(tool[-1], 1), "hand_s": round(hand[-1], 1)}
        print(json.dumps(shown), flush=True)
    return tool, hand


def _stop(one: Operator) -> None:
    one.succeeds("stop-service", MODEL, "--yes")
    until("all ranks are gone", lambda: not _ranks(one.rig), limit_s=60)


def _is_startable(one: Operator) -> bool:
    return one.runs("start-service", MODEL, "3", "--dry-run").returncode == 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=3)
    pairs = options.parse_args().pairs
    rig = rigs.start(FLEET)
    try:
        with tempfile.TemporaryDirectory() as folder:
            tool, hand = measure(rig, Path(folder), pairs)
    finally:
        rig.remove()
    ours, theirs = statistics.median(tool), statistics.median(hand)
    figure = {
        "id": "start-service",
        "figure": "`start-service` over 3 hosts, times its engine's command by hand",
        "value": round(ours / theirs, 3),
        "beyond_s": round(ours - theirs, 1),
        "target": f"<= {RATIO} and {SECONDS} s",
        "pass": ours / theirs <= RATIO and ours - theirs <= SECONDS,
        "n": pairs,
        "tool_s": round(ours, 1),
        "hand_s": round(theirs, 1),
    }
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
