"""Where the API of a fleet is for whoever has its settings."""

from __future__ import annotations

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.host import Host

ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


def api_url(settings: Settings, host: Host) -> str:
    """Of the gateway on this host."""
    where = host.ip or host.address
    if settings.api_host not in ANYWHERE:
        where = settings.api_host
    return f"http://{f'[{where}]' if ':' in where else where}:{settings.api_port}"
