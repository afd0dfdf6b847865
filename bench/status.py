"""How long it takes to look: `status` of a settled fleet, `--help`, and `status` of 64 hosts that
have sshd only, some of them blackholed; prints JSON lines. Needs root and what `make setup`
installs.

    python bench/status.py --rounds 5
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import operator

BARE = """\
import typer
app = typer.Typer(name="bare", help="Two commands.")
@app.command()
def one(name: str = "x") -> None:
    "The first."
@app.command()
def two(name: str = "x") -> None:
    "The second."
app(prog_name="bare")
"""
PROGRAM = (sys.executable, "-m", "vllmdeploy")


def seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


def show(name: str, figure: str, value: float, limit: float, count: int, **more: object) -> None:
    record = {
        "id": name,
        "figure": figure,
        "value": round(value, 3),
        "target": f"<= {limit:g}",
        "pass": value <= limit,
        "n": count,
    }
    print(json.dumps({**record, **more}), flush=True)


def help_page(rounds: int) -> None:
    """In turns, so that what else this machine does falls on both. The package is compiled before,
    as an installer does it: some machines forbid Python to keep what it compiled."""
    package = Path(__file__).resolve().parent.parent / "vllmdeploy"
    compileall.compile_dir(package, quiet=1)
    ours: list[float] = []
    bare: list[float] = []

    def run(*argv: str) -> None:
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    for _ in range(rounds * 3):
        ours.append(seconds(lambda: run(*PROGRAM, "--help")))
        bare.append(seconds(lambda: run(sys.executable, "-c", BARE, "--help")))
    ratio = median(ours) / median(bare)
    more = {"own_s": round(median(ours), 3), "bare_s": round(median(bare), 3)}
    show("help", "`vllmdeploy --help`, times a bare Typer app", ratio, 1.3, len(ours), **more)


def settled_fleet(rounds: int) -> None:
    rig = rigs.start(rigs.MIXED_FLEET[:3])
    try:
        with tempfile.TemporaryDirectory() as folder:
            fleet = operator(rig, Path(folder))
            fleet.up()
            fleet.becomes_whole()
            fleet.status()
            times = [seconds(fleet.status) for _ in range(rounds)]
            show("status-3", "`status` of 3 settled hosts, s", median(times), 1.5, rounds)
    finally:
        rig.remove()


def many_hosts(count: int, dark: int, rounds: int) -> None:
    """Hosts that answer SSH and have no Docker; then the same with some that answer nothing."""
    names = [f"h{number:02}" for number in range(count)]
    rig = rigs.start(tuple(Profile(name=name, engine=False) for name in names))
    try:
        with tempfile.TemporaryDirectory() as folder:
            fleet = operator(rig, Path(folder), ACCELERATOR="cpu")
            for off, limit in ((0, 8.0), (dark, 15.0)):
                for host in rig.hosts[count - off :]:
                    host.set_link(up=False)
                times: list[float] = []
                peaks: list[float] = []
                for _ in range(rounds):
                    took, peak_mib = look_at(fleet.folder, rig.operator_environment())
                    times.append(took)
                    peaks.append(peak_mib)
                name = f"status-{count}" + (f"-{off}-dark" if off else "")
                words = f"`status` of {count} hosts" + (
                    f", {off} of them blackholed" if off else ""
                )
                show(name, f"{words}, s", median(times), limit, rounds)
                show(f"{name}-memory", f"{words}, MiB", max(peaks), 300, rounds)
    finally:
        rig.remove()


def look_at(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak memory of one `status`, whatever it finds."""
    started = time.monotonic()
    with subprocess.Popen(
        (*PROGRAM, "status"),
        cwd=folder,
        env={**environment, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode not in (0, 3):
        raise SystemExit(f"status: exit {program.returncode}")
    return time.monotonic() - started, used.ru_maxrss / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--hosts", type=int, default=64)
    options.add_argument("--dark", type=int, default=3)
    given = options.parse_args()
    help_page(given.rounds)
    settled_fleet(given.rounds)
    many_hosts(given.hosts, given.dark, given.rounds)


if __name__ == "__main__":
    main()
