"""Reads the exceptions of the hubs' libraries by name: the names outlive their modules."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from vllmdeploy.tools.hub import HubTrouble, Trouble

_NETWORK = frozenset(("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"))


def read(error: Exception, known: Mapping[str, Trouble]) -> HubTrouble | None:
    """`known` goes from the special to the general; then the status, then the network decides.

    None is a bug. What is left of OSError is about this machine's disk.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    found = next((trouble for name, trouble in known.items() if name in names), None)
    found = found or _by_status(error)
    if found is None and is_network(error):
        found = Trouble.UNREACHABLE
    if found is None and isinstance(error, OSError):
        found = Trouble.LOCAL
    return HubTrouble(found, words(error), after_s=_after(error)) if found else None


def status_of(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_network(error: Exception) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror)):
        return True
    return bool(_NETWORK & {kind.__module__.split(".")[0] for kind in type(error).__mro__})


def words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:400] or type(error).__name__


def _by_status(error: Exception) -> Trouble | None:
    match status_of(error):
        case None:
            return None
        case 401 | 403:
            return Trouble.GATED
        case 404:
            # The listing named it a moment ago.
            return Trouble.CHANGED
        case 429:
            return Trouble.LIMITED
        case 408 | 500 | 502 | 503 | 504:
            return Trouble.UNREACHABLE
        case _:
            return Trouble.OTHER


def _after(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", {})
    after = str(headers.get("Retry-After", ""))
    return float(after) if after.isascii() and after.isdigit() else None
