#!/bin/sh
# Runs the measurements named here; what each prints stays in .bench/, its figures (JSON lines with
# an "id") are drawn as a table at the end.
set -eu
cd "$(dirname "$0")/.."
mkdir -p .bench

measure() {
    printf '== %s\n' "$*"
    output=.bench/$(basename "$1" .py).jsonl
    .venv/bin/python "$@" >"$output.new"
    mv "$output.new" "$output"
    cat "$output"
}

measure bench/batch.py
if [ -x .venv-engine/bin/python ]; then
    measure bench/batch_real.py
else
    printf '== beside vllm run-batch: needs scripts/engine.sh: left out\n'
fi
measure bench/simulate_routing.py
measure bench/gateway.py
measure bench/instances.py
if [ "$(id -u)" = 0 ]; then
    measure bench/status.py
    measure bench/up.py
    measure bench/models.py
    measure bench/models_pair.py
    measure bench/models_faults.py
    measure bench/images.py
else
    printf '== status and up are measured on real hosts, which needs root: left out\n'
fi
exec .venv/bin/python scripts/figures.py
