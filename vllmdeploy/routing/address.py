"""An upstream's URL, as people write it."""

from __future__ import annotations

from urllib.parse import urlsplit

from vllmdeploy.errors import UsageError
from vllmdeploy.routing.upstream import Address

_HINT = "as in http://gpu-01:8000/v1, or gpu-01:8000"


def parse_address(url: str) -> Address:
    """Without a scheme it is http. The `/v1` most people add belongs to the routes, not to here."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"upstream {url!r}: {error}", hint=_HINT) from error
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"upstream {url!r}: neither http nor https", hint=_HINT)
    if parts.username is not None or parts.query or parts.fragment:
        # The URL may hold a password: it is not repeated.
        raise UsageError("upstream: only scheme, host, port and path can be given", hint=_HINT)
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"upstream {url!r}: no host in it", hint=_HINT)
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Address(host, port or (443 if tls else 80), tls, prefix)
