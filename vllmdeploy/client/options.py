"""What a client can be told when it is made, and prompts as people give them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllmdeploy.client.fleet import FleetSpec
from vllmdeploy.errors import UsageError
from vllmdeploy.routing import policies
from vllmdeploy.routing.address import parse_address
from vllmdeploy.routing.scheduling import scheduling
from vllmdeploy.routing.thresholds import DEFAULTS, Thresholds
from vllmdeploy.routing.upstream import Upstream

Prompt = str | Sequence[Mapping[str, Any]]
PORTS = (8001, 8002, 8003, 8004)
HOST = "localhost"


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """`max_inflight` is the most requests at once for each instance; more wait in this client."""

    routing: str = "round_robin"
    scheduling: str = "adaptive"
    api_key: str = ""
    timeout: float = 600.0
    max_inflight: int = 256
    thresholds: Thresholds = DEFAULTS


def spec_of(
    base_urls: str | Iterable[str], options: ClientOptions, changes: Mapping[str, Any]
) -> FleetSpec:
    """Raises UsageError for what is misspelt or mistyped, before anything is sent."""
    unknown = set(changes) - set(ClientOptions.__dataclass_fields__)
    if unknown:
        known = ", ".join(ClientOptions.__dataclass_fields__)
        raise UsageError(f"unknown option {', '.join(sorted(unknown))}", hint=f"there are: {known}")
    options = replace(options, **changes)
    policies.create(options.routing)
    scheduling(options.scheduling)
    if not options.api_key.isprintable() or not options.api_key.isascii():
        raise UsageError("api_key: a key is one line of plain characters")
    urls = (base_urls,) if isinstance(base_urls, str) else tuple(base_urls)
    addresses = dict.fromkeys(parse_address(url) for url in urls)
    if not addresses:
        raise UsageError("no instance is given", hint="as in http://localhost:8001/v1")
    return FleetSpec(
        upstreams=tuple(
            Upstream(f"{a.host}:{a.port}{a.prefix}", a, limit=options.max_inflight)
            for a in addresses
        ),
        routing=options.routing,
        scheduling=options.scheduling,
        key=options.api_key,
        timeout_s=options.timeout,
        limits=options.thresholds,
    )


def bodies_of(prompts: Iterable[Prompt], fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        yield {**fields, "messages": messages}


def urls_of(ports: Iterable[int] | None, host: str | None) -> list[str]:
    """What is not given comes from VLLM_PORTS and VLLM_HOST, said on stderr, else the default."""
    if ports is None:
        ports = _ports(_from_environment("VLLM_PORTS"))
    if host is None:
        host = _from_environment("VLLM_HOST") or HOST
    shown = f"[{host}]" if ":" in host else host
    return [f"http://{shown}:{port}/v1" for port in ports]


def _from_environment(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if value:
        sys.stderr.write(f"vllmdeploy: {name}={value} (from the environment)\n")
    return value


def _ports(text: str) -> tuple[int, ...]:
    if not text:
        return PORTS
    try:
        ports = tuple(int(part) for part in text.split(","))
    except ValueError:
        ports = ()
    if not ports or not all(0 < port < 65536 for port in ports):
        raise UsageError(f"VLLM_PORTS: {text!r} is not ports", hint="as in 8001,8002")
    return ports
