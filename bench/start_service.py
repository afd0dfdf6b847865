"""`start-service` over three hosts beside its engine's own command by hand, in interleaved pairs;
prints JSON lines.

By hand: `docker exec` in the head's container with the words and the variables that the service's
engine had, asked every half second until it answers a prompt as it should. The gateway, the keys
and the plan, which our command makes and checks besides, are not typed. Of both is seen when the
engine's process began and when it was healthy: what lies between is the engine's own and differs
by seconds from run to run, whoever starts it; `outside` is the rest. Needs root, Docker, what
`make setup` installs, and `scripts/engine.sh`.

    python bench/start_service.py --pairs 3
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
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
_TICKS = os.sysconf("SC_CLK_TCK")
_ENGINE = "vllm.entrypoints.*--distributed-executor-backend ray"
# Since the machine's start, in ticks.
_BEGAN = f"sed 's/.*) //' /proc/$(pgrep -of '{_ENGINE}')/stat | cut -d' ' -f20"


@dataclass(frozen=True)
class Took:
    """Seconds of one run, and those in which its engine began and became healthy."""

    whole: float
    engine: float

    @property
    def outside(self) -> float:
        return self.whole - self.engine


class Seen:
    """Looks at the engine from outside, as often whoever started it."""

    def __init__(self, head: Host, health: str) -> None:
        self._head, self._asking = head, f"{_BEGAN}; curl -sf -m 5 {health} && echo healthy"
        self._ended = threading.Event()
        self._engine = 0.0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.25):
            said = self._head.sh(f"{self._asking} || true").stdout.split()
            if "healthy" in said:
                self._engine = time.clock_gettime(time.CLOCK_BOOTTIME) - int(said[0]) / _TICKS
                return

    def took(self, whole: float) -> Took:
        self._ended.set()
        self._thread.join()
        if not self._engine:
            raise SystemExit("the engine was not seen to be healthy")
        return Took(whole, self._engine)


@dataclass(frozen=True)
class Engine:
    """What the operator types: its words and its variables."""

    argv: tuple[str, ...]
    environment: dict[str, str]

    def word(self, flag: str) -> str:
        return self.argv[self.argv.index(flag) + 1]

    @property
    def url(self) -> str:
        return f"http://{self.word('--host')}:{self.word('--port')}"


def engine_of(head: Host) -> Engine:
    """Of the engine that runs there now."""
    found = head.sh(f"pgrep -of '{_ENGINE}'").stdout
    folder = f"/proc/{found.split()[0]}"
    argv, environ = (
        head.sh(f"tr '\\0' '\\n' < {folder}/{name}").stdout.splitlines()
        for name in ("cmdline", "environ")
    )
    pairs = (line.partition("=") for line in environ)
    return Engine(tuple(argv), {name: value for name, _, value in pairs if name})


def by_tool(one: Operator, keys: list[str], health: str) -> Took:
    """From the command until an answer through the gateway, which is asked once it has ended."""
    seen, began = Seen(one.rig.head, health), time.monotonic()
    done = one.runs("start-service", MODEL, "3", "--yes", limit_s=_LIMIT_S)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    keys += [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("API key")]
    text = ask(one.rig, "/generate", {"prompt": PROMPT, "max_tokens": 4}, keys[0])["text"]
    assert "Paris" in text, text
    return seen.took(time.monotonic() - began)


def by_hand(rig: Rig, engine: Engine) -> Took:
    """From the command until an answer of the engine."""
    head = rig.head
    url = f"{engine.url}/v1/completions"
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "temperature": 0})
    asking = f"curl -sf -m 30 -H 'Content-Type: application/json' -d {shlex.quote(body)} {url}"
    variables = " ".join(
        f"-e {shlex.quote(f'{name}={value}')}" for name, value in engine.environment.items()
    )

    def answers() -> bool:
        return "Paris" in head.sh(f"{asking} || true").stdout

    seen, began = Seen(head, f"{engine.url}/health"), time.monotonic()
    head.sh(f"docker exec -d {variables} {_HEAD} {shlex.join(engine.argv)}")
    until("the engine answers", answers, limit_s=_LIMIT_S, every_s=0.5)
    took = seen.took(time.monotonic() - began)
    head.sh(f"pkill -TERM -of '{_ENGINE}'")
    until("all ranks are gone", lambda: not _ranks(rig), limit_s=60)
    return took


def _ranks(rig: Rig) -> list[str]:
    return [line for host in rig.hosts for line in look.processes(host) if "ray::RayWorker" in line]


def measure(rig: Rig, folder: Path, pairs: int) -> tuple[list[Took], list[Took]]:
    one, keys = made(rig, folder), list[str]()
    one.up()
    # Neither counts what is read from the disk for the first time.
    done = one.runs("start-service", MODEL, "3", "--yes", limit_s=_LIMIT_S)
    keys += [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("API key")]
    engine = engine_of(rig.head)
    _stop(one)
    tool: list[Took] = []
    hand: list[Took] = []
    for number in range(pairs):
        for who in ("tool", "hand") if number % 2 else ("hand", "tool"):
            if who == "tool":
                tool.append(by_tool(one, keys, f"{engine.url}/health"))
                _stop(one)
            else:
                hand.append(by_hand(rig, engine))
                until("Ray has its cards back", lambda: _is_startable(one), limit_s=60)
        print(json.dumps({"pair": number + 1, **_shown(tool[-1:], hand[-1:])}), flush=True)
    return tool, hand


def _shown(tool: Sequence[Took], hand: Sequence[Took]) -> dict[str, float]:
    """Medians."""
    return {
        f"{who}_{what}_s": round(statistics.median(getattr(one, what) for one in some), 1)
        for what in ("whole", "outside")
        for who, some in (("tool", tool), ("hand", hand))
    }


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
    medians = _shown(tool, hand)
    ratio = medians["tool_whole_s"] / medians["hand_whole_s"]
    beyond = medians["tool_outside_s"] - medians["hand_outside_s"]
    figure = {
        "id": "start-service",
        "figure": "`start-service` over 3 hosts, times its engine's command by hand",
        "value": round(ratio, 3),
        "outside_beyond_s": round(beyond, 1),
        "target": f"<= {RATIO} and {SECONDS} s",
        "pass": ratio <= RATIO and beyond <= SECONDS,
        "n": pairs,
        **medians,
    }
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
