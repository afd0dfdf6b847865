"""Addresses of instances as people write them."""

from __future__ import annotations

from urllib.parse import urlsplit

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.upstream import Address, Upstream

_HINT = "as in http://gpu-01:8000/v1, or gpu-01:8000"


def address_of(url: str) -> Address:
    """A missing scheme is http; the `/v1` that most people add is part of each row's path."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise UsageError(f"upstream {url!r}: {error}", hint=_HINT) from error
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"upstream {url!r}: neither http nor https", hint=_HINT)
    if not host or not url.isascii() or any(c.isspace() for c in url):
        raise UsageError(f"upstream {url!r}: no host in it", hint=_HINT)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"upstream {parts.scheme}://{host}: only a host, a port and a path can be given",
            hint="a key goes into a file, named with --api-key-file",
        )
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Address(host, port or (443 if tls else 80), tls, prefix)


def upstreams_of(urls: tuple[str, ...] | list[str]) -> tuple[Upstream, ...]:
    addresses = dict.fromkeys(address_of(url) for url in urls)
    if not addresses:
        raise UsageError("no upstream is given", hint="name one or several with --upstream URL")
    return tuple(Upstream(id=str(address), address=address) for address in addresses)
