"""Where SSH goes for a host: settings, its line and ~/.ssh/config brought together, hop by hop."""

from __future__ import annotations

import getpass
import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vllmdeploy.core.host import Host
from vllmdeploy.effects.known_hosts import host_name
from vllmdeploy.effects.ssh_library import paramiko
from vllmdeploy.errors import HostUnreachable, SettingsError

SSH_FOLDER = Path("~/.ssh").expanduser()
SYSTEM_KNOWN_HOSTS = (
    SSH_FOLDER / "known_hosts",
    SSH_FOLDER / "known_hosts2",
    Path("/etc/ssh/ssh_known_hosts"),
)
DEFAULT_KEYS = tuple(SSH_FOLDER / name for name in ("id_ed25519", "id_ecdsa", "id_rsa"))

_INCLUDE = re.compile(r"^\s*include(?:\s*=\s*|\s+)(?P<files>.+?)\s*$", re.IGNORECASE)
_INCLUDE_DEPTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings:
    """How hosts are reached. `ask` is given a question and returns what the user typed, unseen."""

    known_hosts: Path = SSH_FOLDER / "known_hosts"
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    password_file: Path | None = None
    ask: Callable[[str], str] | None = None
    config: Path | None = SSH_FOLDER / "config"
    system_known_hosts: tuple[Path, ...] = SYSTEM_KNOWN_HOSTS
    default_keys: tuple[Path, ...] = DEFAULT_KEYS
    use_agent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One sshd on the way to a host. `name` is for people, `known_as` for known_hosts."""

    name: str
    address: str
    port: int
    user: str
    keys: tuple[Path, ...] = ()
    only_these_keys: bool = False
    known_as: str

    def __str__(self) -> str:
        return self.address if self.port == 22 else f"{self.address} port {self.port}"


def read_config(file: Path | None) -> paramiko.SSHConfig:
    """OpenSSH's own file, with what it includes."""
    if file is None or not file.is_file():
        return paramiko.SSHConfig()
    try:
        return paramiko.SSHConfig.from_text("\n".join(_lines(file, _INCLUDE_DEPTH)))
    except (paramiko.ConfigParseError, OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{file}: {error}"]) from error


def _lines(file: Path, depth: int) -> list[str]:
    found: list[str] = []
    for line in file.read_text("utf-8").splitlines():
        include = _INCLUDE.match(line)
        if include is None:
            found.append(line)
        elif depth:
            for pattern in include["files"].split():
                # Relative to the user's own folder, which is what OpenSSH does.
                beside = file.parent / Path(pattern.strip('"')).expanduser()
                for each in sorted(glob.glob(str(beside))):  # noqa: PTH207 - an absolute pattern
                    found.extend(_lines(Path(each), depth - 1))
    return found


def route(host: Host, ssh: SshSettings, config: paramiko.SSHConfig) -> tuple[Hop, ...]:
    """The jump hosts in order, then the host. Its own line beats the settings, these the file."""
    options = _options(host.name, host.address, config)
    if (options.get("proxycommand") or "none").lower() != "none":
        raise HostUnreachable(
            host.name,
            f"{ssh.config} sets ProxyCommand for it, and no program is started on its behalf",
            hint="write it as ProxyJump, or give the address that is reached directly",
        )
    target = _hop(
        *(host.name, host.address, options, ssh),
        user=host.user or ssh.user,
        port=host.port or ssh.port,
    )
    jumps = options.get("proxyjump") or "none"
    if jumps.lower() == "none":
        return (target,)
    return (*(_jump(text.strip(), ssh, config) for text in jumps.split(",")), target)


def _jump(text: str, ssh: SshSettings, config: paramiko.SSHConfig) -> Hop:
    """`[user@]host[:port]`, with brackets around an IPv6 address, or the same as ssh://."""
    parts = re.fullmatch(
        r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:]+)(?::(?P<port>\d+))?", text
    )
    if parts is None:
        raise SettingsError([f"{ssh.config}: ProxyJump: not [user@]host[:port]: {text!r}"])
    address = parts["host"].strip("[]")
    options = _options(address, address, config)
    port = int(parts["port"]) if parts["port"] else None
    return _hop(address, address, options, ssh, user=parts["user"], port=port)


def _hop(
    name: str,
    address: str,
    options: dict[str, str],
    ssh: SshSettings,
    *,
    user: str | None,
    port: int | None,
) -> Hop:
    reached_at = options.get("hostname", address)
    where = port or int(options.get("port", "22"))
    alias = options.get("hostkeyalias")
    keys = [Path(file).expanduser() for file in cast("list[str]", options.get("identityfile", []))]
    return Hop(
        name=name,
        address=reached_at,
        port=where,
        user=user or options.get("user") or getpass.getuser(),
        keys=(*((ssh.key,) if ssh.key else ()), *keys),
        only_these_keys=options.get("identitiesonly", "no").lower() == "yes",
        known_as=alias.lower() if alias else host_name(reached_at, where),
    )


def _options(name: str, address: str, config: paramiko.SSHConfig) -> dict[str, str]:
    try:
        return dict(config.lookup(address))
    except (ImportError, paramiko.SSHException) as error:
        # `Match exec` runs a program of the user's own to know what applies, and it may not run.
        raise HostUnreachable(name, f"~/.ssh/config cannot be applied to it: {error}") from error
