"""What engines said of their KV cache when they started: kept on the head, for the next time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.spec import fingerprint

_GIB = 2**30
_AVAILABLE = re.compile(r"Available KV cache memory: +(-?\d{1,6}(?:\.\d{1,6})?) GiB")
_TOKENS = re.compile(r"KV cache size: +([\d,]{1,20}) tokens")

# The last start's lines are the last in the log. Each rank says its own, so several are kept.
_KEEP = """
lines=$(grep -ah -e 'Available KV cache memory' "$1" 2>/dev/null | tail -n "$4")
tokens=$(grep -ah -e 'KV cache size:' "$1" 2>/dev/null | tail -n 1)
[ -n "$lines" ] || exit 0
mkdir -p "${2%/*}" || exit
printf '%s\\n%s\\n%s\\n' "$3" "$lines" "$tokens" > "$2.new" && mv "$2.new" "$2"
"""
_READ = """
cd "$1" 2>/dev/null || exit 0
for file in *.txt; do
  [ -f "$file" ] || continue
  printf '\\n@@measured@@\\n'
  cat -- "$file"
done
exit 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What an engine's free memory depends on; `settings`: its other flags, as one word."""

    image: str
    card: str
    model: str
    weights: int
    tensor_parallel: int
    pipeline_parallel: int
    utilisation: float
    settings: str = ""

    @property
    def key(self) -> str:
        return fingerprint(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes that the rank with least had for its cache, and the tokens that all had room for."""

    available: int
    tokens: int = 0


def keep(log: str, folder: str, conditions: Conditions) -> Command:
    """Run where the engine has just started; a log that does not say anything changes nothing."""
    ranks = str(conditions.tensor_parallel * conditions.pipeline_parallel)
    file = f"{folder}/{conditions.key}.txt"
    header = json.dumps(asdict(conditions), sort_keys=True)
    return script(_KEEP, log, file, header, ranks, root=True).within(20)


def measured(folder: str) -> Fact[Mapping[str, Measured]]:
    """All that is known, by the key of its conditions."""
    return Fact(
        name="measured caches",
        command=script(_READ, folder, root=True).within(20),
        parse=_parse,
    )


def _parse(result: Result) -> Mapping[str, Measured]:
    found: dict[str, Measured] = {}
    for part in result.stdout.split("\n@@measured@@\n")[1:]:
        header, _, lines = part.partition("\n")
        conditions, said = _conditions(header), _measured(lines)
        if conditions and said:
            found[conditions.key] = said
    return found


def _conditions(header: str) -> Conditions | None:
    try:
        return Conditions(**cast("dict[str, Any]", json.loads(header)))
    except (ValueError, TypeError):
        return None


def _measured(lines: str) -> Measured | None:
    memory = [float(one) for one in _AVAILABLE.findall(lines)]
    tokens = _TOKENS.findall(lines)
    if not memory or min(memory) <= 0:
        return None
    count = int(tokens[-1].replace(",", "")) if tokens else 0
    return Measured(available=int(min(memory) * _GIB), tokens=count)
