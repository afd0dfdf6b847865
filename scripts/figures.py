"""Draws the figures that measurements and fault cases left in .bench/ as one table.

A figure is a line of .bench/*.jsonl that is a JSON object whose keys are `COLUMNS`; only `id`,
`figure` and `value` must be there. Measurements may print other lines too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

COLUMNS = ("id", "figure", "value", "target", "pass", "n", "seed", "seconds")
VERDICTS = {True: "yes", False: "NO", None: ""}


def cell(column: str, value: object) -> str:
    if column == "pass" and (value is None or isinstance(value, bool)):
        return VERDICTS[value]
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def table(records: Iterable[dict[str, object]]) -> str:
    """A Markdown table, columns aligned, so that it reads in a terminal and on a page."""
    rows = [COLUMNS, *(tuple(cell(c, record.get(c)) for c in COLUMNS) for record in records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def figures(lines: Iterable[str]) -> list[dict[str, object]]:
    records = (json.loads(line) for line in lines if line.startswith("{"))
    return [record for record in records if record.keys() >= {"id", "figure", "value"}]


def main() -> int:
    files = sorted(Path(".bench").glob("*.jsonl"))
    records = figures(line for file in files for line in file.read_text().splitlines())
    if not records:
        sys.stderr.write("no figures in .bench/: run `make bench` or `make test-long` first\n")
        return 2
    sys.stdout.write(table(records) + "\n")
    return 1 if any(record.get("pass") is False for record in records) else 0


if __name__ == "__main__":
    raise SystemExit(main())
