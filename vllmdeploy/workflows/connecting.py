"""From the settings to shells: the one place that turns SSH keys of config.env into SSH."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.host import Host
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.effects.route import SshSettings
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import HostError


def ssh_settings(settings: Settings, *, ask: Callable[[str], str] | None = None) -> SshSettings:
    given = SshSettings(
        user=settings.ssh_user,
        port=settings.ssh_port,
        key=settings.ssh_key,
        password_file=settings.ssh_password_file,
        ask=ask,
    )
    known_hosts = settings.ssh_known_hosts
    return replace(given, known_hosts=known_hosts) if known_hosts else given


def connect_all(
    hosts: Sequence[Host],
    settings: Settings,
    *,
    ask: Callable[[str], str] | None,
    lazily: bool = False,
) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
    """Shells for the hosts that answer, and why the others do not; `lazily`, that shows later."""
    connected = connect(hosts, ssh_settings(settings, ask=ask), lazily=lazily)
    return connected.shells, dict(connected.failures)


def this_machine(
    hosts: Sequence[Host], settings: Settings
) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
    """For what is done on the host itself: no SSH, whatever the host is called."""
    return {host.name: LocalShell(host.name) for host in hosts}, {}
