"""Listening sockets: bound by us, given to us, or taken over from the gateway that we replace."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import cast

from vllmdeploy.errors import UsageError
from vllmdeploy.gateway.journal import say, warn

_BACKLOG = 4096
_SOCKETS_MAX = 128
_READY = b"ready"
_GIVE_S = 60.0
_Address = tuple[str, int] | tuple[str, int, int, int]


def bind(host: str, port: int, each: int = 1) -> list[socket.socket]:
    """`each`: so many sockets of one address, among which the system spreads connections: of one
    socket, the first of several workers to wake would take all that wait."""
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as error:
        raise UsageError(f"--listen {host}:{port}: {error}") from error
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(address)
        except OSError as error:
            for one in (listener, *bound):
                one.close()
            raise UsageError(
                f"{host}:{port} cannot be listened on: {error.strerror}",
                hint="another program has the port; --takeover replaces a running gateway",
            ) from error
        if each == 1:
            bound.append(_listening(listener))
            continue
        # The first has made sure that no other program has the port; it must go, because the
        # system would give it a part of the connections.
        address = cast("_Address", listener.getsockname())
        listener.close()
        bound.extend(_shared(family, address) for _ in range(each))
    return bound


def _listening(listener: socket.socket) -> socket.socket:
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _shared(family: int, address: _Address) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)
    return _listening(listener)


def given(descriptor: int) -> list[socket.socket]:
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"--listen fd:{descriptor}: {error}") from error
    listener.setblocking(False)
    return [listener]


class Predecessor:
    """The gateway that holds the port now; it stops listening once we say that we are ready."""

    def __init__(self, channel: socket.socket, sockets: list[socket.socket]) -> None:
        self._channel = channel
        self.sockets = sockets

    def release(self) -> None:
        with self._channel:
            self._channel.sendall(_READY)


def take_over(path: str) -> Predecessor | None:
    """None where nobody is there to take over from."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(5.0)
    try:
        channel.connect(path)
        _, descriptors, _, _ = socket.recv_fds(channel, 16, _SOCKETS_MAX)
    except OSError:
        channel.close()
        return None
    if not descriptors:
        channel.close()
        return None
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for listener in sockets:
        listener.setblocking(False)
    return Predecessor(channel, sockets)


class Successor:
    """Waits for the gateway that will replace us, gives it our sockets, and tells us to leave.

    The same sockets are shared, so a connection that nobody has accepted yet is not lost.
    """

    def __init__(self, path: str, sockets: list[socket.socket], leave: Callable[[], None]) -> None:
        self._path = path
        self._sockets = sockets
        self._leave = leave
        self._listener = _private_listener(path)

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            channel, _ = await loop.sock_accept(self._listener)
            with channel:
                if await self._give(channel):
                    say("the port was taken over by another gateway")
                    self._leave()
                    return

    def close(self) -> None:
        self._listener.close()

    async def _give(self, channel: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        try:
            socket.send_fds(channel, [b"sockets"], [one.fileno() for one in self._sockets])
            answer = await asyncio.wait_for(loop.sock_recv(channel, len(_READY)), _GIVE_S)
        except (OSError, asyncio.TimeoutError) as error:
            warn("a gateway that wanted to take over did not", why=str(error))
            return False
        return answer == _READY


def _private_listener(path: str) -> socket.socket:
    """Made aside and renamed, so that the path always leads to somebody; for our user only."""
    aside = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(aside).unlink(missing_ok=True)
        listener.bind(aside)
        Path(aside).chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(1)
        Path(aside).replace(path)
    except OSError as error:
        listener.close()
        raise UsageError(f"--takeover {path}: {error}") from error
    listener.setblocking(False)
    return listener
