#!/bin/sh
# Runs every measurement in bench/; each prints its figures and adds them to .bench/figures.jsonl.
set -eu
cd "$(dirname "$0")/.."
mkdir -p .bench
: >.bench/figures.jsonl
for measurement in bench/bench_*.py; do
    printf '== %s\n' "$measurement"
    .venv/bin/python "$measurement"
done
exec .venv/bin/python scripts/figures.py
