"""Opening SSH connections: jump hosts on the way, host keys checked, patience with a busy sshd."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vllmdeploy.core.host import Host
from vllmdeploy.effects.keys import Credentials
from vllmdeploy.effects.known_hosts import HostKey, KnownHosts, Trust
from vllmdeploy.effects.route import Hop, SshSettings, read_config, route
from vllmdeploy.effects.ssh_library import IncompatiblePeer, paramiko
from vllmdeploy.errors import HostKeyChanged, HostKeyUnknown, HostUnreachable, VllmdeployError

CONNECT_S = 10.0
KEEP_ALIVE_S = 15

# A peer that acknowledges nothing for this long is gone, keep-alives included.
_SILENT_MS = 45_000
# sshd drops new connections at random once MaxStartups of them have not logged in yet.
_STARTS = 9
# An RSA key is offered under the names of its signatures.
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class _Dropped(Exception):
    """sshd closed the connection before it said who it is."""


def backoff(
    chance: random.Random, *, first_s: float = 0.15, most_s: float = 3.0
) -> Iterator[float]:
    """Waits that double and differ, so that those who were refused together do not return so."""
    wait = first_s
    while True:
        yield wait * chance.uniform(0.5, 1.5)
        wait = min(most_s, wait * 2)


@dataclass(slots=True)
class Dialler:
    """Connections to the hosts of one fleet; connections to jump hosts are shared."""

    settings: SshSettings
    pause: Callable[[float], None] = time.sleep
    chance: random.Random = field(default_factory=random.Random)
    credentials: Credentials = field(init=False)
    _config: paramiko.SSHConfig = field(init=False)
    _known: KnownHosts = field(init=False)
    _jumps: dict[tuple[Hop, ...], paramiko.Transport] = field(
        init=False, default_factory=dict[tuple[Hop, ...], paramiko.Transport]
    )
    _locks: dict[tuple[Hop, ...], threading.Lock] = field(
        init=False, default_factory=dict[tuple[Hop, ...], threading.Lock]
    )
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # What paramiko has to say reaches the user in our words, once.
        logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)
        self.credentials = Credentials(self.settings)
        self._config = read_config(self.settings.config)
        self._known = KnownHosts.read(
            (self.settings.known_hosts, *self.settings.system_known_hosts)
        )

    def route(self, host: Host) -> tuple[Hop, ...]:
        return route(host, self.settings, self._config)

    def dial(self, host: Host) -> paramiko.Transport:
        """A connection that is logged in; HostError says why there is none."""
        return self._logged_in(self.route(host), host.name)

    def key_at(self, hops: tuple[Hop, ...], host: str) -> HostKey:
        """The key the last hop answers with, asked without logging in to it."""
        transport = self._shaken_hands(hops[-1], self._jump(hops[:-1], host), host)
        try:
            return _key_of(transport)
        finally:
            transport.close()

    def recorded(self, hop: Hop) -> str:
        return "; ".join(map(str, self._known.of(hop.known_as))) or "as revoked"

    def judge(self, hop: Hop, key: HostKey) -> Trust:
        return self._known.judge(hop.known_as, key)

    def close(self) -> None:
        with self._lock:
            jumps, self._jumps = dict(self._jumps), {}
        for hops in sorted(jumps, key=len, reverse=True):
            jumps[hops].close()

    def _logged_in(self, hops: tuple[Hop, ...], host: str) -> paramiko.Transport:
        hop = hops[-1]
        transport = self._shaken_hands(hop, self._jump(hops[:-1], host), host)
        try:
            self._check_key(transport, hop, host)
            self.credentials.log_in(transport, hop, host=host)
        except VllmdeployError:
            transport.close()
            raise
        transport.set_keepalive(KEEP_ALIVE_S)
        return transport

    def _jump(self, hops: tuple[Hop, ...], host: str) -> paramiko.Transport | None:
        if not hops:
            return None
        with self._lock:
            lock = self._locks.setdefault(hops, threading.Lock())
        with lock:
            shared = self._jumps.get(hops)
            if shared is None or not shared.is_active():
                shared = self._jumps[hops] = self._logged_in(hops, host)
            return shared

    def _shaken_hands(
        self, hop: Hop, via: paramiko.Transport | None, host: str
    ) -> paramiko.Transport:
        """Keys are agreed on, nobody has logged in. Asks again while sshd is busy."""
        waits = backoff(self.chance)
        for left in reversed(range(_STARTS)):
            try:
                return self._attempt(hop, via, host)
            except _Dropped as dropped:
                if not left:
                    raise HostUnreachable(
                        host,
                        f"sshd at {hop} closed {_STARTS} connections before any login: {dropped}",
                        hint="it may be overloaded (MaxStartups) or refuse this address "
                        "(PerSourceMaxStartups, hosts.deny, fail2ban)",
                    ) from dropped
                self.pause(next(waits))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, hop: Hop, via: paramiko.Transport | None, host: str) -> paramiko.Transport:
        line = _connected(hop, host) if via is None else _tunnelled(hop, via, host)
        try:
            transport = paramiko.Transport(line)
        except (paramiko.SSHException, OSError) as error:
            line.close()
            raise _Dropped(str(error)) from error
        transport.banner_timeout = transport.auth_timeout = CONNECT_S
        options = transport.get_security_options()
        recorded = [_algorithms(entry.key) for entry in self._known.of(hop.known_as)]
        known_first = dict.fromkeys(
            name for names in (*recorded, options.key_types) for name in names
        )
        options.key_types = tuple(name for name in known_first if name in options.key_types)
        try:
            transport.start_client(timeout=CONNECT_S)
            _key_of(transport)
        except IncompatiblePeer as error:
            transport.close()
            raise HostUnreachable(
                host, f"no cipher in common with sshd at {hop}: {error}"
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            transport.close()
            if transport.remote_version:
                raise HostUnreachable(host, f"sshd at {hop} did not finish: {error}") from error
            raise _Dropped(str(error) or "end of file") from error
        return transport

    def _check_key(self, transport: paramiko.Transport, hop: Hop, host: str) -> None:
        key = _key_of(transport)
        verdict = self.judge(hop, key)
        who = "its" if hop.name == host else f"the jump host {hop.name}'s"
        if verdict is Trust.UNKNOWN:
            raise HostKeyUnknown(
                host,
                f"{who} SSH host key is not known: {key}",
                hint="`vllmdeploy trust` shows the keys of all hosts and records them",
            )
        if verdict is not Trust.KNOWN:
            raise key_changed(host, hop, key, self.recorded(hop), who=who)


def key_changed(
    host: str, hop: Hop, key: HostKey, recorded: str, *, who: str = "its"
) -> HostKeyChanged:
    return HostKeyChanged(
        host,
        f"{who} SSH host key has CHANGED\n  recorded: {recorded}\n  answered: {key}",
        hint="either someone stands in between, or the host was installed anew; if you know it "
        f"was: `vllmdeploy trust --forget {hop.name}`, then `vllmdeploy trust`",
    )


def _key_of(transport: paramiko.Transport) -> HostKey:
    key = transport.get_remote_server_key()
    return HostKey(key.get_name(), key.asbytes())


def _algorithms(key: HostKey) -> tuple[str, ...]:
    return _RSA if key.kind == "ssh-rsa" else (key.kind,)


def _connected(hop: Hop, host: str) -> socket.socket:
    try:
        line = socket.create_connection((hop.address, hop.port), timeout=CONNECT_S)
    except socket.gaierror as error:
        raise HostUnreachable(
            host,
            f"the name {hop.address} does not resolve: {error.strerror}",
            hint="check the name in worker_nodes.txt, DNS or /etc/hosts",
        ) from error
    except ValueError as error:
        raise HostUnreachable(host, f"{hop.address!r} is not the name of a host") from error
    except TimeoutError as error:
        raise HostUnreachable(
            host,
            f"no answer from {hop} within {CONNECT_S:g} s",
            hint="is it up, is the address right, does a firewall stand between?",
        ) from error
    except ConnectionRefusedError as error:
        raise HostUnreachable(
            host, f"nothing listens at {hop}", hint="start sshd there, or set SSH_PORT"
        ) from error
    except OSError as error:
        raise HostUnreachable(
            host,
            f"no connection to {hop}: {error.strerror or error}",
            hint="is it up, is the address right, is there a route to it from here?",
        ) from error
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
    return line


def _tunnelled(hop: Hop, via: paramiko.Transport, host: str) -> paramiko.Channel:
    try:
        return via.open_channel(
            "direct-tcpip", (hop.address, hop.port), ("127.0.0.1", 0), timeout=CONNECT_S
        )
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise HostUnreachable(
            host,
            f"the jump host did not reach {hop}: {error}",
            hint="is it up, and does the jump host's sshd allow forwarding (AllowTcpForwarding)?",
        ) from error
