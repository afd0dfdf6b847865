"""Several instances beside one: scaling, our client beside the bare SDK, one killed under load.

    python bench/instances.py [--prompts 2000] [--sequences 12] [--answer-s 0.5]

Prints one JSON object a line. The instances are fake and take a fixed time for an answer, so all
that is lost between one and four of them is lost by the client.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI

from vllmdeploy import MultiVLLMClient

_UPSTREAM = Path(__file__).with_name("instances_upstream.py")
_OVERHEAD_CALLS = 300


@contextmanager
def instance(sequences: int, seconds: float) -> Generator[tuple[str, subprocess.Popen[str]]]:
    words = (sys.executable, str(_UPSTREAM), str(sequences), str(seconds))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1", process
        finally:
            process.kill()


def wall(count: int, prompts: int, sequences: int, seconds: float) -> float:
    """Seconds for all prompts over so many instances. Twice as many prompts are on their way as
    there is room for, so that no instance is ever idle because another got one more."""
    with ExitStack() as held:
        urls = [held.enter_context(instance(sequences, seconds))[0] for _ in range(count)]
        client = held.enter_context(MultiVLLMClient(urls))
        workers = 2 * sequences * count
        client.map(["warm"] * workers, max_workers=workers, model="fake")
        began = time.perf_counter()
        said = client.map(["p"] * prompts, max_workers=workers, model="fake")
        assert len(said) == prompts
        return time.perf_counter() - began


def scaling(prompts: int, sequences: int, seconds: float) -> None:
    """`ideal` is what the fake instances alone allow: full all the time."""
    one = 0.0
    for count in (1, 2, 4):
        took = wall(count, prompts, sequences, seconds)
        one = one or took
        ideal = prompts / (count * sequences) * seconds
        show(
            f"I{count}",
            f"scaling of {count} instances, of linear",
            one / (count * took),
            target=0.97,
            passed=one / (count * took) >= 0.97,
            n=prompts,
            seconds=took,
            of_ideal=round(ideal / took, 4),
        )


def overhead() -> None:
    """Calls one after another against an instance that answers at once."""
    with instance(64, 0.0) as (url, _):
        messages: Any = [{"role": "user", "content": "p"}]
        with MultiVLLMClient([url]) as ours, OpenAI(base_url=url, api_key="none") as bare:
            took: dict[str, float] = {}
            for name, client in (("ours", ours), ("openai", bare)):
                client.chat.completions.create(model="fake", messages=messages)
                began = time.perf_counter()
                for _ in range(_OVERHEAD_CALLS):
                    client.chat.completions.create(model="fake", messages=messages)
                took[name] = (time.perf_counter() - began) / _OVERHEAD_CALLS * 1e6
    show("I5", "one call through our client, microseconds", took["ours"], n=_OVERHEAD_CALLS)
    show("I6", "one call through the openai SDK, microseconds", took["openai"], n=_OVERHEAD_CALLS)


def killed(prompts: int, sequences: int, seconds: float) -> None:
    """One of four is killed in the middle; a prompt without an answer is lost."""
    with ExitStack() as held:
        started = [held.enter_context(instance(sequences, seconds)) for _ in range(4)]
        client = held.enter_context(MultiVLLMClient([url for url, _ in started]))
        half = prompts / (4 * sequences) * seconds / 2
        killer = threading.Timer(half, started[0][1].kill)
        killer.start()
        began = time.perf_counter()
        said = client.map(
            ["p"] * prompts, max_workers=8 * sequences, model="fake", return_errors=True
        )
        took = time.perf_counter() - began
        killer.join()
        assert started[0][1].poll() is not None
    lost = sum(isinstance(one, Exception) for one in said)
    lost += prompts - len(said)
    show("I7", "one of four killed: lost", lost, target=0, passed=not lost, n=prompts, seconds=took)


def show(
    id_: str,
    figure: str,
    value: float,
    *,
    target: float | None = None,
    passed: bool | None = None,
    **more: object,
) -> None:
    judged = {} if target is None else {"target": target, "pass": passed}
    record = {"id": id_, "figure": figure, "value": round(value, 4), **judged, **more}
    print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--answer-s", type=float, default=0.5)
    options = parser.parse_args()
    scaling(options.prompts, options.sequences, options.answer_s)
    killed(options.prompts, options.sequences, options.answer_s)
    overhead()


if __name__ == "__main__":
    main()
