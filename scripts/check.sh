#!/bin/sh
# Every static check, in the order of speed. All of them run; the exit status says whether all passed.
set -u
cd "$(dirname "$0")/.." || exit
status=0

check() {
    printf '== %s\n' "$*"
    "$@" || status=1
}

check .venv/bin/ruff format --check .
check .venv/bin/ruff check .
if command -v shellcheck >/dev/null; then
    check shellcheck -x scripts/*.sh templates/image/*.sh tests/rig/*.sh .ci/run
else
    printf '== shellcheck is not installed: the scripts were not checked\n'
    [ "${CI:-}" != true ] || status=1
fi
check .venv/bin/lint-imports
check .venv/bin/mypy
check .venv/bin/pyright
exit "$status"
