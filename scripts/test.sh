#!/bin/sh
# The checks, then the unit tests on every Python at hand beside the rig tests: the former mostly
# wait, so both together take little longer than the rig alone. With --long, every kill point and
# every fault case as well.
set -eu
cd "$(dirname "$0")/.."

if [ "${1:-}" = --long ]; then unit="not rig" rig="rig"
else unit="not rig and not long" rig="rig and not long"
fi
records=.cache/test
mkdir -p "$records"

# NAME ENVIRONMENT MARKS [OPTION...]
pytest() {
    name=$1 environment=$2 marks=$3
    shift 3
    printf '== %s tests, Python %s\n' "$name" \
        "$("$environment/bin/python" -c 'import platform as p; print(p.python_version())')"
    "$environment/bin/python" -m pytest -q -o "cache_dir=.pytest_cache/$name" \
        -m "$marks and not gpu" "$@"
}

first_try() {
    status=0
    pytest "$@" --durations=10 || status=$?
    echo "$status" >"$records/$1.status"
}

# Real Docker, sshd, Ray and engines on a small machine that others may load: what failed gets one
# more try, alone. It is said, because a test that needs it has a fault that is worth finding.
verdict() {
    status=$(cat "$records/$1.status")
    [ "$status" -eq 1 ] || return "$status"
    printf '== SECOND TRY, alone, of what failed above\n'
    pytest "$@" --last-failed --last-failed-no-failures=none
}

sh scripts/check.sh

rm -f "$records"/*.status
{
    first_try unit .venv "$unit"
    if [ -x .venv-3.10/bin/python ]; then
        first_try unit-on-the-floor .venv-3.10 "$unit"
    elif ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
        printf '== no Python 3.10 on this machine: the floor was not tested\n'
    fi
} >"$records/unit.log" 2>&1 &
printf '== the unit tests run beside these, into %s, shown afterwards\n' "$records/unit.log"
first_try rig .venv "$rig"
wait
cat "$records/unit.log"

failed=0
verdict unit .venv "$unit" || failed=1
if [ -e "$records/unit-on-the-floor.status" ]; then
    verdict unit-on-the-floor .venv-3.10 "$unit" || failed=1
fi
verdict rig .venv "$rig" || failed=1
exit "$failed"
