"""vLLM's own /metrics page: its load in a few numbers, and its lines with the instance named."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vllmdeploy.gateway.meters import escape
from vllmdeploy.routing.load import Observed

PREFIX = b"vllm:"
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    rb"|generation_tokens_total|(?:gpu_)?prefix_cache_queries(?:_total)?"
    rb"|(?:gpu_)?prefix_cache_hits(?:_total)?)(?:\{[^\n]*\})? ([^\s]+)",
    re.MULTILINE,
)
_NAMES = {
    b"num_requests_running": "running",
    b"num_requests_waiting": "waiting",
    b"kv_cache_usage_perc": "kv_usage",
    b"gpu_cache_usage_perc": "kv_usage",
    b"generation_tokens_total": "tokens",
}
_LINE = re.compile(rb"^(?:# (?:HELP|TYPE) )?(vllm:[A-Za-z0-9_:]+)(.*)$", re.MULTILINE)
_LINES_AT_ONCE = 5_000
_SUFFIX = re.compile(rb"_(?:bucket|sum|count|created)$")


def observed(page: bytes, now: float) -> Observed | None:
    """None if this is not vLLM's page. Several engines behind one address are added up."""
    sums: dict[str, float] = {}
    for name, text in _SAMPLE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        key = _NAMES.get(name) or ("hits" if b"hits" in name else "queries")
        sums[key] = sums.get(key, 0.0) + value
    if "running" not in sums:
        return None
    return Observed(
        at=now,
        running=int(sums["running"]),
        waiting=int(sums.get("waiting", 0)),
        kv_usage=min(1.0, sums.get("kv_usage", 0.0)),
        generated_tokens=sums.get("tokens", 0.0),
        prefix_queries=sums.get("queries", 0.0),
        prefix_hits=sums.get("hits", 0.0),
    )


class Merged:
    """Pages of many instances as one: each family's help and type once, its samples together."""

    def __init__(self) -> None:
        self._about: dict[bytes, list[bytes]] = {}
        self._samples: dict[bytes, list[bytes]] = {}

    def add(self, instance: str, page: bytes) -> None:
        label = b'instance="' + escape(instance).encode() + b'"'
        families: set[bytes] = set()
        for match in _LINE.finditer(page):
            name, rest = match.groups()
            if match[0].startswith(b"#"):
                families.add(name)
                about = self._about.setdefault(name, [])
                if len(about) < 2:
                    about.append(match[0])
                continue
            family = name if name in families else _SUFFIX.sub(b"", name)
            if family not in families:
                continue
            labelled = (
                b"{" + label + b"," + rest[1:] if rest[:1] == b"{" else b"{" + label + b"}" + rest
            )
            self._samples.setdefault(family, []).append(name + labelled)

    def families(self) -> Iterable[bytes]:
        """The text of each, in pieces that one turn of the loop can make."""
        for family, samples in self._samples.items():
            yield b"".join(line + b"\n" for line in self._about.get(family, ()))
            for first in range(0, len(samples), _LINES_AT_ONCE):
                piece = samples[first : first + _LINES_AT_ONCE]
                yield b"\n".join(piece) + b"\n"
