"""A model's folder on a host as the planner of a service needs it; no weight is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from vllmdeploy.core.command import Result, script
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
    weight files; 0 where they are of a kind that we do not know."""

    there: bool = False
    digest: str = ""
    managed: bool = False
    config: str = ""
    weights: int = 0

    @property
    def problem(self) -> str:
        """Why no engine could load it; empty where one could."""
        if not self.there:
            return "not there"
        if self.managed and not self.digest:
            return "not complete: it has a manifest and no READY marker"
        return "" if self.config else "no model: its folder has no config.json"


def folder(path: str) -> Fact[FoundModel]:
    return Fact(
        name=f"model {path}",
        command=script(_QUESTION, path, META_FOLDER, root=True).within(20),
        parse=_parse,
    )


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
