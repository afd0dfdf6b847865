"""Kills a process that writes journal rows as fast as it can, again and again; counts the damage.

    python -m tests.batch.tight FOLDER KILLS SEED

Forks, so it must run in a process without threads. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from pathlib import Path

from vllmdeploy.batch.entries import Entry, Head, Response, format_entry
from vllmdeploy.batch.journal import Journal, verify

ROWS = 200


def write_rest(folder: Path, said: int) -> None:
    journal = Journal(folder)
    for _ in journal.load():
        pass
    journal.begin()
    for line in range(1, ROWS + 1):
        if line not in journal.done:
            kind = "http_400" if line % 5 == 0 else "ok"
            head = Head(line, 1.0, 0.0, 1, 0, 0, kind, "http://a:1")
            body = json.dumps("x" * (line % 90)).encode()
            entry = format_entry(Entry(head, f"r{line}", Response(200, "", body), "bad"))
            journal.append(line, kind, entry)
    os.write(said, b"!")
    signal.pause()


def one_kill(folder: Path, wait_s: float) -> bool:
    """True when all rows were in before the kill."""
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        write_rest(folder, said)
    finished, _, _ = select.select([heard], [], [], wait_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(heard)
    os.close(said)
    return bool(finished)


def main() -> None:
    folder, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torn = rounds = 0
    for _ in range(kills):
        finished = one_kill(folder, chance.uniform(0, 0.004))
        for name in ("results.jsonl.part", "errors.jsonl.part"):
            path = folder / name
            torn += path.exists() and not (path.read_bytes() or b"\n").endswith(b"\n")
        if finished:
            lines = [stored.head.line for stored in verify(folder, ROWS)]
            assert sorted(lines) == list(range(1, ROWS + 1))
            Journal(folder).restart()
            rounds += 1
    while not one_kill(folder, 10):
        pass
    lines = [stored.head.line for stored in verify(folder, ROWS)]
    for name in ("results.jsonl.part", "errors.jsonl.part"):
        for line in (folder / name).read_bytes().split(b"\n")[:-1]:
            json.loads(line)
    once = set(lines)
    figures = {"kills": kills, "rows": len(once), "doubled": len(lines) - len(once)}
    sys.stdout.write(json.dumps({**figures, "rounds": rounds, "torn": torn}))


if __name__ == "__main__":
    main()
