#!/bin/sh
# Installs what the tests need: Debian packages that are missing, and the virtual environments.
# Run again at will: a stamp in each environment makes the second run a matter of milliseconds.
# --without-rig: only what `make demo` needs, which is neither Docker nor sshd.
set -eu
cd "$(dirname "$0")/.."

case ${1:-} in --without-rig) rig=no ;; *) rig=yes ;; esac

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

wanted_packages() {
    if [ "$rig" = no ]; then printf '%s\n' libnuma1 python3-venv; else grep -v '^#' scripts/packages.txt; fi
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing_packages() {
    wanted_packages | while read -r names; do
        for package in $(printf '%s' "$names" | tr '|' ' '); do
            if installed "$package"; then continue 2; fi
        done
        printf '%s ' "$names"
    done
}

# available NAME|NAME: the first that there is, else the last.
available() {
    for package in $(printf '%s' "$1" | tr '|' ' '); do
        if apt-cache show "$package" >/dev/null 2>&1; then break; fi
    done
    printf '%s ' "$package"
}

install_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not Debian or Ubuntu: no packages installed; the rig tests cannot run here"
        return
    fi
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "not root, so not installed: $missing(the rig tests need them)"
        return
    fi
    say "installing: $missing"
    apt-get update -qq || say "apt-get update complained; trying with the lists at hand"
    # Word splitting is wanted: one argument per package.
    # shellcheck disable=SC2046
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        $(for names in $missing; do available "$names"; done) >/dev/null
}

# A Python that can carry us: 3.10 to 3.13, with venv and pip.
usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
        2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10 to 3.13 with venv"
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3 /usr/bin/python3 python3.11 python3.12 python3.13 python3.10; do
        if usable "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python 3.10 to 3.13 with venv found; set PYTHON=/path/to/python3"
}

# The oldest Python we promise to run on, where the machine has one beside its own.
find_floor() {
    for candidate in python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python3.10; do
        if usable "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
}

# environment FOLDER PYTHON EXTRAS: made or brought up to date when pyproject.toml has changed.
environment() {
    stamp=$1/setup-stamp
    wanted="$3 $(sha256sum <pyproject.toml)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && usable "$1/bin/python"; then
        return
    fi
    if ! usable "$1/bin/python"; then
        say "making $1 with $2"
        "$2" -m venv --clear "$1"
    fi
    say "installing .[$3] into $1"
    "$1/bin/python" -m pip install -qq --disable-pip-version-check --editable ".[$3]"
    printf '%s' "$wanted" >"$stamp"
}

install_packages
environment .venv "$(find_python)" dev,ray,fast

[ "$rig" = yes ] || exit 0
floor=$(find_floor)
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
    : # the environment already is the floor
elif [ -n "$floor" ]; then
    environment .venv-3.10 "$floor" test,ray,fast
fi
