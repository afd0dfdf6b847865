"""A model's folder on a host as the planner of a service needs it; no weight is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import whole
from vllmdeploy.tools.manifest_names import META_FOLDER

_MARK = "@@config@@"
_QUESTION = f"""
cd "$1" 2>/dev/null || exit 0
echo folder=yes
ready=$(cat "$2/READY" READY 2>/dev/null | head -n 1) && printf 'ready=%s\\n' "$ready"
if [ -f "$2/MANIFEST.json" ]; then echo manifest=yes; fi
for kind in safetensors bin; do
  size=$(ls -lL ./*."$kind" 2>/dev/null | awk '{{size += $5}} END {{printf "%.0f", size}}')
  if [ "$size" != 0 ]; then printf 'weights=%s\\n' "$size"; break; fi
done
if [ -f config.json ] && [ "$(wc -c < config.json)" -lt 4000000 ]; then
  printf '{_MARK}\\n' && cat config.json
fi
exit 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """`digest`: what its READY marker carries; empty where it has none. `weights`: the size of its
    weight files; 0 where they are of a kind that we do not know. `unreadable`: what the engine's
    own user cannot read, as its container says."""

    there: bool = False
    digest: str = ""
    managed: bool = False
    config: str = ""
    weights: int = 0
    unreadable: str = ""

    @property
    def problem(self) -> str:
        """Why no engine could load it; empty where one could."""
        if not self.there:
            return "not there"
        if self.managed and not self.digest:
            return "not complete: it has a manifest and no READY marker"
        if not self.config:
            return "no model: its folder has no config.json"
        return f"not readable where the engine runs: {self.unreadable}" if self.unreadable else ""


def folder(path: str) -> Fact[FoundModel]:
    return Fact(
        name=f"model {path}",
        command=script(_QUESTION, path, META_FOLDER, root=True).within(20),
        parse=_parse,
    )


# Files are opened: what a network file system forbids is told by nothing else. $1 the folder.
_READABLE = """
tell() { printf '@@unreadable@@%s, by user %s\\n' "$1" "$(id -u)"; exit 0; }
{ cd "$1" && ls >/dev/null; } 2>/dev/null || tell "$1"
find -L . -name .vllmdeploy -prune -o -type d ! -exec test -x {} ';' -print | head -n 1 | {
  read -r path && tell "$path"; }
find -L . -name .vllmdeploy -prune -o -type f -exec sh -c '
  for path; do { true < "$path"; } 2>/dev/null || { printf "%s\\n" "$path"; exit 1; }; done
' sh {} + 2>/dev/null | head -n 1 | { read -r path && tell "$path"; }
exit 0
"""


def readable_argv(path: str) -> tuple[str, ...]:
    """Run this where the engine will run, as the user that it will be."""
    return ("sh", "-c", _READABLE, "sh", path)


def unreadable(command: Command) -> Fact[str]:
    """What cannot be read; nothing too where there is no container to say it."""
    return Fact(name="readable model", command=command, parse=_parse_unreadable)


def _parse_unreadable(result: Result) -> str:
    said = result.stdout.partition("@@unreadable@@")[2].splitlines()
    return said[0] if said else ""


def _parse(result: Result) -> FoundModel:
    head, mark, config = result.stdout.partition(f"{_MARK}\n")
    said = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    return FoundModel(
        there=said.get("folder") == "yes",
        digest=said.get("ready", ""),
        managed=said.get("manifest") == "yes",
        config=config if mark else "",
        weights=whole(said.get("weights", "")) or 0,
    )


def own_method(config: str) -> str:
    """The quantization that a checkpoint was made with; empty for plain weights."""
    try:
        shown = cast("dict[str, Any]", json.loads(config))
        section: Any = shown.get("quantization_config") or shown.get("compression_config")
        return str(section["quant_method"]) if section else ""
    except (ValueError, AttributeError, KeyError, TypeError):
        return ""


@dataclass(frozen=True, slots=True)
class Quantization:
    """The method to name to vLLM, nothing where none has to be named, or why it cannot be."""

    method: str = ""
    refusal: str = ""


# What vLLM does itself to plain weights while it loads them, best first.
_ONLINE = {
    "int8": ("int8_per_channel_weight_only",),
    "int4": ("bitsandbytes",),
    "fp8": ("fp8",),
}


def quantization(asked: str, own: str, methods: Sequence[str]) -> Quantization:
    """A quantized checkpoint keeps its own method; plain weights get one that this vLLM has."""
    if asked == "none" or own:
        return Quantization()
    wanted = _ONLINE.get(asked, (asked,))
    method = next((one for one in wanted if one in methods), "")
    if method:
        return Quantization(method)
    kinds = {"int8": "an int8 (W8A8) checkpoint", "int4": "an AWQ or GPTQ int4 checkpoint"}
    get = kinds.get(asked, "a checkpoint quantized beforehand")
    return Quantization(
        refusal=f"QUANTIZATION={asked}: this vLLM cannot do that to plain weights; get {get}"
        f" (methods it has: {', '.join(methods) or 'none'})"
    )
