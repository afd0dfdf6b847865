#!/bin/sh
# The checks, the unit tests on every Python at hand, then the rig. With --long, every kill point
# and every fault case as well.
set -eu
cd "$(dirname "$0")/.."

if [ "${1:-}" = --long ]; then unit="not rig" rig="rig"
else unit="not rig and not long" rig="rig and not long"
fi

sh scripts/check.sh

# Real Docker, sshd, Ray and engines on a small machine that others may load: what failed gets one
# more try, alone. It is said, because a test that needs it has a fault that is worth finding.
tests() {
    python=$1
    shift
    "$python" -m pytest -q "$@" && return 0
    status=$?
    [ "$status" -eq 1 ] || return "$status"
    printf '== SECOND TRY, alone, of what failed above\n'
    "$python" -m pytest -q --last-failed --last-failed-no-failures=none "$@"
}

printf '== unit tests, Python %s\n' "$(.venv/bin/python -c 'import platform as p; print(p.python_version())')"
tests .venv/bin/python -m "$unit and not gpu"

if [ -x .venv-3.10/bin/python ]; then
    printf '== unit tests, Python 3.10 (the floor)\n'
    tests .venv-3.10/bin/python -m "$unit and not gpu"
elif ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
    printf '== no Python 3.10 on this machine: the floor was not tested\n'
fi

printf '== rig tests\n'
tests .venv/bin/python -m "$rig and not gpu"
