"""kill -9 anywhere loses no row and doubles none."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.upstream import Asked, Say, echo, serving
from tests.support.figures import leave

ROOT = Path(__file__).parents[2]


def victim(
    source: Path, output: Path, url: str, rows: int, torn: int, key: str = ""
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        (
            *(sys.executable, "-m", "tests.batch.victim"),
            *(str(source), str(output), url, str(rows), str(torn), key),
        ),
        cwd=ROOT,
    )


class Killer:
    """Kills the run that goes on, and no other, when it has asked for the nth time.

    What a dead run had sent may be answered after its end. It carries that run's key, so it
    neither counts for the next one nor reaches a process id that is somebody else's by now.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = ""
        self._left = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, begin: Callable[[], subprocess.Popen[bytes]], key: str, nth: int) -> int:
        with self._lock:
            self._key, self._left = f"Bearer {key}", nth
            self._process = begin()
        return self._process.wait()

    def answer(self, asked: Asked) -> Say:
        with self._lock:
            if asked.headers["authorization"] == self._key and self._left:
                self._left -= 1
                if not self._left and self._process is not None:
                    self._process.send_signal(signal.SIGKILL)
        return echo(asked)


def rows_of(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in path.read_bytes().split(b"\n")[:-1]]


def damage(output: Path, count: int) -> tuple[int, int]:
    """Rows that are in neither file, and rows that are there more than once."""
    rows = [*rows_of(output / "results.jsonl"), *rows_of(output / "errors.jsonl")]
    return len({*range(1, count + 1)} - {*rows}), len(rows) - len({*rows})


def write_input(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(1, count + 1):
            row = "{oops" if number % 50 == 0 else json.dumps({"prompt": f"p{number} é\u2028"})
            file.write(row + "\n")


def kill_and_resume(tmp_path: Path, *, rows: int, kills: int, seed: int) -> tuple[int, int]:
    """Half of the kills come from inside, in the middle of a write, half from the upstream."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    write_input(source, rows)
    chance = random.Random(seed)
    each = rows // (kills + 1)
    killer = Killer()
    with serving(killer.answer) as upstream:

        def begin(key: str, at: int, torn: int) -> Callable[[], subprocess.Popen[bytes]]:
            return lambda: victim(source, output, upstream.url, at, torn, key)

        for number in range(kills):
            at, torn, key = chance.randrange(1, each), chance.randrange(400), f"run-{number}"
            if chance.random() < 0.5:
                assert killer.start(begin(key, at, torn), key, 0) == -signal.SIGKILL
            else:
                assert killer.start(begin(key, -1, 0), key, at) == -signal.SIGKILL
        assert killer.start(begin("last", -1, 0), "last", 0) == 0
    recomputed = len(upstream.asked) - (rows - rows // 50)
    assert 0 <= recomputed <= 300 * kills
    return damage(output, rows)


def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    assert kill_and_resume(tmp_path, rows=2_000, kills=20, seed=20261121) == (0, 0)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_kills_over_ten_thousand_rows_lose_and_double_nothing(tmp_path: Path) -> None:
    lost, doubled = kill_and_resume(tmp_path, rows=10_000, kills=100, seed=1)
    leave("B1", "rows of 10,000 lost or doubled by kill -9", lost + doubled, n=100, seed=1)
    assert (lost, doubled) == (0, 0)


def tight(folder: Path, kills: int) -> dict[str, int]:
    done = subprocess.run(
        (sys.executable, "-m", "tests.batch.tight", str(folder), str(kills), "5"),
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def test_kills_in_a_tight_write_loop_leave_whole_rows(tmp_path: Path) -> None:
    figures = tight(tmp_path, 200)
    assert (figures["rows"], figures["doubled"]) == (200, 0)


@pytest.mark.long
def test_a_thousand_kills_in_a_tight_write_loop_leave_whole_rows(tmp_path: Path) -> None:
    figures = tight(tmp_path, 1000)
    lost = 200 - figures["rows"]
    leave(
        "B2",
        "rows lost or doubled by kill -9 in a write",
        lost + figures["doubled"],
        n=1000,
        seed=5,
    )
    assert (lost, figures["doubled"]) == (0, 0)


def command(source: Path, output: Path, url: str) -> subprocess.Popen[bytes]:
    words = ("batch", "run", str(source), "-o", str(output), "--upstream", url)
    return subprocess.Popen(
        (sys.executable, "-m", "vllmdeploy", *words), cwd=ROOT, stdout=subprocess.DEVNULL
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_at_once_and_the_run_goes_on(tmp_path: Path, number: int) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    write_input(source, 100)
    running: list[subprocess.Popen[bytes]] = []

    def script(asked: Asked) -> Say:
        # Beyond the rows that are in flight at first, so that some are done by then.
        if asked.prompt.startswith("p70") and asked.nth == 1:
            running[-1].send_signal(number)
            return Say(hang=True)
        return echo(asked)

    with serving(script) as upstream:
        running.append(command(source, output, upstream.url))
        assert running[-1].wait() == 130
        assert len(rows_of(output / "results.jsonl.part")) >= 1
        running.append(command(source, output, upstream.url))
        assert running[-1].wait() == 8
    assert damage(output, 100) == (0, 0)
