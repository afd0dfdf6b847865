"""Logging in: keys, the agent and a password, in an order that never locks an account out."""

from __future__ import annotations

import base64
import contextlib
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vllmdeploy.effects.known_hosts import HostKey
from vllmdeploy.effects.route import Hop, SshSettings
from vllmdeploy.effects.ssh_library import paramiko
from vllmdeploy.errors import HostUnreachable, SettingsError

# sshd ends a connection after six refused tries, and guards against guessing often lock an
# account after five.
MOST_TRIES = 3


def password_from(file: Path) -> str:
    """The first line of a file that nobody else can read."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise SettingsError(
                [f"SSH_PASSWORD_FILE: {file} can be read by others (mode {mode:04o})"],
                hint=f"chmod 600 {file}",
            )
        return file.read_text("utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"SSH_PASSWORD_FILE: {file}: {error}"]) from error


@dataclass(frozen=True, slots=True)
class _Key:
    label: str
    key: paramiko.PKey


@dataclass(slots=True)
class Credentials:
    """Every file is read once, and every question asked once, for the whole fleet."""

    settings: SshSettings
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _read: dict[Path, _Key | str] = field(default_factory=dict[Path, "_Key | str"])
    _password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.settings.password_file is not None:
            self._password = password_from(self.settings.password_file)

    @property
    def known_password(self) -> str | None:
        """The password as far as it was given by now; sudo takes the same."""
        return self._password

    def log_in(self, transport: paramiko.Transport, hop: Hop, *, host: str) -> None:
        tried: list[str] = []
        problems: list[str] = []
        # An agent's connection is not made for threads, so every login has its own.
        with contextlib.closing(paramiko.Agent()) as agent:
            for label, attempt in self._attempts(transport, hop, agent, problems):
                tried.append(label)
                try:
                    still_wanted = attempt()
                except paramiko.BadAuthenticationType as error:
                    problems.append(f"it takes {' or '.join(error.allowed_types)} only")
                except paramiko.AuthenticationException as error:
                    if not transport.is_active():
                        problems.append(str(error) or "it closed the connection")
                        break
                except (paramiko.SSHException, OSError, EOFError) as error:
                    problems.append(str(error) or "it closed the connection")
                    break
                else:
                    if not still_wanted:
                        return
                    problems.append(f"after {label} it also wants {' and '.join(still_wanted)}")
        raise _refused(host, hop, tried, problems)

    def _attempts(
        self, transport: paramiko.Transport, hop: Hop, agent: paramiko.Agent, problems: list[str]
    ) -> Iterator[tuple[str, Callable[[], list[str]]]]:
        """At most three; the last is kept for the password where there is one to give."""
        with_password = self._password is not None or self.settings.ask is not None
        keys = self._keys(hop, agent, problems)
        room = MOST_TRIES - with_password
        for each in keys[:room]:
            yield each.label, partial(transport.auth_publickey, hop.user, each.key)
        if len(keys) > room:
            problems.append(f"{len(keys) - room} more keys were not tried: {MOST_TRIES} tries only")
        if with_password:
            yield "password", lambda: transport.auth_password(hop.user, self._ask_password(hop))

    def _keys(self, hop: Hop, agent: paramiko.Agent, problems: list[str]) -> list[_Key]:
        """Keys named for this host, then the agent's; else the agent's, then the usual files."""
        in_agent = [_Key(f"agent key {_fingerprint(key)}", key) for key in _held(self, agent)]
        usual = [file for file in self.settings.default_keys if file.is_file()]
        found = [self._key(file, in_agent, hop) for file in hop.keys or usual]
        problems.extend(each for each in found if isinstance(each, str))
        files = [each for each in found if isinstance(each, _Key)]
        others = [] if hop.only_these_keys else in_agent
        ordered = [*files, *others] if hop.keys else [*others, *files]
        once: dict[bytes, _Key] = {}
        for each in ordered:
            once.setdefault(each.key.asbytes(), each)
        return list(once.values())

    def _key(self, file: Path, in_agent: list[_Key], hop: Hop) -> _Key | str:
        with self._lock:
            if file not in self._read:
                # The agent may hold the very key whose file is encrypted.
                held = next(
                    (each for each in in_agent if _public(file) == each.key.asbytes()), None
                )
                if held is not None:
                    return held
                self._read[file] = self._load(file, may_ask=file in hop.keys)
            return self._read[file]

    def _load(self, file: Path, *, may_ask: bool) -> _Key | str:
        try:
            return _Key(str(file), _private_key(file, None))
        except paramiko.PasswordRequiredException:
            if self.settings.ask is None or not may_ask:
                return f"{file} is encrypted: `ssh-add {file}` first"
        except (OSError, ValueError, paramiko.SSHException) as error:
            return f"{file} cannot be read as a private key: {error}"
        try:
            return _Key(str(file), _private_key(file, self.settings.ask(f"Passphrase of {file}")))
        except (OSError, ValueError, paramiko.SSHException):
            return f"{file} is encrypted, and the passphrase does not open it"

    def _ask_password(self, hop: Hop) -> str:
        with self._lock:
            if self._password is None and self.settings.ask is not None:
                self._password = self.settings.ask(
                    f"SSH password of {hop.user}@{hop.name}, and of all others that want one"
                )
            return self._password or ""


def _held(credentials: Credentials, agent: paramiko.Agent) -> tuple[paramiko.AgentKey, ...]:
    return agent.get_keys() if credentials.settings.use_agent else ()


def _private_key(file: Path, passphrase: str | None) -> paramiko.PKey:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey):
        try:
            return kind.from_private_key_file(str(file), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except paramiko.SSHException:
            continue
    return paramiko.RSAKey.from_private_key_file(str(file), passphrase)


def _public(file: Path) -> bytes | None:
    """The public half, which stands beside a private key in the clear."""
    try:
        return base64.b64decode(Path(f"{file}.pub").read_text("utf-8").split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _fingerprint(key: paramiko.PKey) -> str:
    return HostKey(key.get_name(), key.asbytes()).fingerprint


def _refused(host: str, hop: Hop, tried: list[str], problems: list[str]) -> HostUnreachable:
    where = "" if hop.name == host else f" at the jump host {hop.name}"
    means = ", ".join(tried) or "nothing: no key, no agent, no password"
    notes = "".join(f"\n  {problem}" for problem in dict.fromkeys(problems))
    return HostUnreachable(
        host,
        f"sshd refused user {hop.user}{where} (tried {means}){notes}",
        hint=f"set SSH_USER, SSH_KEY or SSH_PASSWORD_FILE so that `ssh {hop.user}@{hop.address}"
        f"{'' if hop.port == 22 else f' -p {hop.port}'}` works",
    )
