"""A supervised child as a value, and the reading of an engine's spec file into one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from vllmdeploy.node.ranks import Ranks
from vllmdeploy.node.table import Limits

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEYS = frozenset(
    (
        *("name", "argv", "env", "node", "needs", "nodes", "start_limit_s", "stop_limit_s"),
        *("health_url", "canary_url", "canary_body", "metrics_url"),
        "ranks",
        "service",  # what the planner keeps there for itself
    )
)


@dataclass(frozen=True, slots=True)
class TcpReady:
    """Ready when a TCP connection to it is accepted."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class LineReady:
    """Ready when its output contains the text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe:
    """Ready when /health says 200 (and the canary generates); watched for as long as it runs."""

    health_url: str
    canary_url: str = ""
    canary_body: str = ""
    metrics_url: str = ""


Readiness = TcpReady | LineReady | HttpProbe | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    ready: Readiness = None
    limits: Limits = field(default_factory=Limits)
    needs_ray: bool = False
    needs_nodes: tuple[str, ...] = ()
    node: str = ""
    ranks: Ranks | None = None


class BadSpec(ValueError):
    """A spec file that cannot be run, and why."""


def parse_engine(text: str) -> ChildSpec:
    """One engine from its JSON text; unknown keys are refused, so that a typo is not silence."""
    try:
        loaded: object = json.loads(text)
    except ValueError as error:
        raise BadSpec(f"not JSON: {error}") from error
    fields = _mapping(loaded, "the file")
    unknown = sorted(set(fields) - KEYS)
    if unknown:
        raise BadSpec(f"unknown keys: {', '.join(unknown)}")
    name = _text(fields, "name")
    if not NAME.fullmatch(name) or name in ("ray", "warden"):
        raise BadSpec(f"name: {name!r} is not letters, digits, '.', '_' or '-', or is taken")
    needs = _texts(fields, "needs")
    if set(needs) - {"ray"}:
        raise BadSpec(f"needs: only 'ray' can be needed, not {needs}")
    argv = _texts(fields, "argv")
    if not argv:
        raise BadSpec("argv: must name a program")
    env = _mapping(fields.get("env", {}), "env")
    if any(not key or "=" in key or "\0" in key for key in env):
        raise BadSpec("env: a name is empty or holds '='")
    return ChildSpec(
        name=name,
        argv=argv,
        env={key: _as_text(value, f"env.{key}") for key, value in env.items()},
        ready=_probe(fields),
        limits=Limits(
            start_s=_seconds(fields, "start_limit_s", 1800.0),
            stop_s=_seconds(fields, "stop_limit_s", 60.0),
        ),
        needs_ray="ray" in needs,
        needs_nodes=_texts(fields, "nodes"),
        node=_text(fields, "node", ""),
        ranks=_ranks(fields),
    )


def http_probe(
    health_url: str, *, metrics_url: str = "", canary_url: str = "", canary_body: str = ""
) -> HttpProbe:
    return HttpProbe(
        health_url=_http(health_url, "health_url"),
        metrics_url=_http(metrics_url, "metrics_url"),
        canary_url=_http(canary_url, "canary_url"),
        canary_body=canary_body,
    )


def _ranks(fields: Mapping[str, object]) -> Ranks | None:
    if "ranks" not in fields:
        return None
    shown = _mapping(fields["ranks"], "ranks")
    hosts = shown.get("hosts")
    pairs = cast("list[object]", hosts) if isinstance(hosts, list) else []
    named = tuple(_texts({"ranks.hosts": pair}, "ranks.hosts") for pair in pairs)
    if len(named) < 2 or any(len(pair) != 2 for pair in named):
        raise BadSpec("ranks.hosts: must be [name, IP] of two hosts or more")
    return Ranks(
        index=_whole(shown, "index", len(named) - 1),
        hosts=tuple((pair[0], pair[1]) for pair in named),
        port=_whole(shown, "port", 65535),
        generation=_text(shown, "generation"),
    )


def _whole(fields: Mapping[str, object], key: str, most: int) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise BadSpec(f"ranks.{key}: must be a whole number, 0 to {most}")
    return value


def _probe(fields: Mapping[str, object]) -> Readiness:
    if "health_url" not in fields:
        return None
    return http_probe(
        _text(fields, "health_url"),
        metrics_url=_text(fields, "metrics_url", ""),
        canary_url=_text(fields, "canary_url", ""),
        canary_body=json.dumps(fields["canary_body"]) if "canary_body" in fields else "",
    )


def _http(url: str, key: str) -> str:
    if not url:
        return url
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or any(char <= " " for char in url):
        raise BadSpec(f"{key}: {url!r} is not an http:// address")
    try:
        parts.port  # noqa: B018  reading it is what checks it
    except ValueError as error:
        raise BadSpec(f"{key}: {url!r}: {error}") from error
    return url


def _mapping(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadSpec(f"{what}: must be an object")
    return cast("dict[str, object]", value)


def _text(fields: Mapping[str, object], key: str, default: str | None = None) -> str:
    if key not in fields and default is not None:
        return default
    return _as_text(fields.get(key), key)


def _as_text(value: object, what: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise BadSpec(f"{what}: must be a text")
    return value


def _texts(fields: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = fields.get(key, [])
    if not isinstance(value, list):
        raise BadSpec(f"{key}: must be a list of texts")
    return tuple(_as_text(item, key) for item in cast("list[object]", value))


def _seconds(fields: Mapping[str, object], key: str, default: float) -> float:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise BadSpec(f"{key}: must be seconds, more than 0")
    return float(value)
