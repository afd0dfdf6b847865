#!/bin/sh
# The checks, the unit tests on every Python at hand, then the rig. With --long, every kill point
# and every fault case as well.
set -eu
cd "$(dirname "$0")/.."

if [ "${1:-}" = --long ]; then unit="not rig" rig="rig"
else unit="not rig and not long" rig="rig and not long"
fi

sh scripts/check.sh

printf '== unit tests, Python %s\n' "$(.venv/bin/python -c 'import platform as p; print(p.python_version())')"
.venv/bin/python -m pytest -q -m "$unit and not gpu"

if [ -x .venv-3.10/bin/python ]; then
    printf '== unit tests, Python 3.10 (the floor)\n'
    .venv-3.10/bin/python -m pytest -q -m "$unit and not gpu"
elif ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
    printf '== no Python 3.10 on this machine: the floor was not tested\n'
fi

printf '== rig tests\n'
.venv/bin/python -m pytest -q -m "$rig and not gpu"
