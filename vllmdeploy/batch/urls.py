"""Upstreams out of the URLs that people give, each once."""

from __future__ import annotations

from collections.abc import Iterable

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.address import parse_address
from vllmdeploy.routing.upstream import Upstream


def upstreams_of(urls: Iterable[str]) -> tuple[Upstream, ...]:
    addresses = dict.fromkeys(parse_address(url) for url in urls)
    if not addresses:
        raise UsageError("no upstream is given", hint="name one or several with --upstream URL")
    return tuple(Upstream(id=str(address), address=address) for address in addresses)
