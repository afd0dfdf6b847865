"""Shells for all hosts at once: the local one for this machine, SSH for the others."""

from __future__ import annotations

import getpass
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from vllmdeploy.core.host import Host
from vllmdeploy.effects.dial import Dialler
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.effects.shell import Shell
from vllmdeploy.effects.ssh import SshShell
from vllmdeploy.errors import HostError, VllmdeployError

if TYPE_CHECKING:
    import paramiko

    from vllmdeploy.effects.route import SshSettings

# Each connection costs this machine a few milliseconds of arithmetic; more at once do not help.
CONNECTION_STARTS = 24

_SSH_PORT = 22


@dataclass(frozen=True, slots=True)
class Connected:
    """The hosts that answered, and why the others did not; both in the order asked."""

    shells: Mapping[str, Shell]
    failures: Mapping[str, HostError]
    _dialler: Dialler = field(repr=False)

    def close(self) -> None:
        for shell in self.shells.values():
            shell.close()
        self._dialler.close()

    def __enter__(self) -> Connected:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    hosts: Sequence[Host],
    ssh: SshSettings,
    *,
    at_once: int = CONNECTION_STARTS,
    lazily: bool = False,
    pause: Callable[[float], None] = time.sleep,
    chance: random.Random | None = None,
) -> Connected:
    """A host that cannot be reached becomes a failure; wrong settings are raised. `lazily`: the
    first command to a host opens its connection, and fails where there can be none."""
    chance = chance or random.Random()
    dialler = Dialler(ssh, pause=pause, chance=chance)

    starting = threading.Semaphore(at_once)

    def dial(host: Host) -> paramiko.Transport:
        with starting:
            return dialler.dial(host)

    def shell_for(host: Host) -> Shell:
        if is_this_machine(host):
            return LocalShell(host.name, sudo_password=dialler.credentials.known_password)
        shell = SshShell(
            host.name,
            lambda: dial(host),
            sudo_password=lambda: dialler.credentials.known_password,
            pause=pause,
            chance=chance,
        )
        if not lazily:
            shell.connect()
        return shell

    shells: dict[str, Shell] = {}
    failures: dict[str, HostError] = {}
    for host, answer in zip(hosts, each(hosts, shell_for, at_once=at_once), strict=True):
        if isinstance(answer, HostError):
            failures[host.name] = answer
        elif isinstance(answer, VllmdeployError):
            raise answer
        else:
            shells[host.name] = answer
    return Connected(shells, failures, dialler)


def is_this_machine(host: Host) -> bool:
    """Its address is one of ours. Another port or user on its line asks for SSH all the same:
    a tunnel ends here, or another login is meant."""
    if host.port not in (None, _SSH_PORT) or host.user not in (None, getpass.getuser()):
        return False
    if host.address in ("localhost", socket.gethostname()):
        return True
    try:
        found = socket.getaddrinfo(host.address, None, type=socket.SOCK_DGRAM)
    except (OSError, ValueError):
        # A name that does not resolve may still be one in ~/.ssh/config.
        return False
    return any(_is_bindable(family, address) for family, _, _, _, address in found)


def _is_bindable(family: int, address: tuple[object, ...]) -> bool:
    """Only an address of this machine can be bound to."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((*address[:1], 0, *address[2:]))
        except OSError:
            return False
    return True
