"""The shell of a host behind SSH: one connection, a bounded number of sessions at a time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.effects.dial import CONNECT_S, backoff
from vllmdeploy.effects.exchange import Exchange
from vllmdeploy.effects.shell import Feed, OnLine, Take
from vllmdeploy.effects.ssh_library import paramiko
from vllmdeploy.effects.wrap import BOOTSTRAP, new_mark, with_sudo_password
from vllmdeploy.errors import HostUnreachable, last_line

# sshd allows ten on a connection unless told otherwise (MaxSessions).
SESSIONS = 8

_REFUSALS = 8
_EXEC_S = 20.0
# The command's own group, and what `timeout` has put into another one.
_END = 'kill -s KILL $(cat "/proc/$1/task/$1/children"); kill -s KILL -- "-$1"'

Dial = Callable[[], paramiko.Transport]


class SshShell:
    """Runs commands on one host; a lost connection is opened again by the next command."""

    def __init__(
        self,
        host: str,
        dial: Dial,
        *,
        sudo_password: Callable[[], str | None] = lambda: None,
        pause: Callable[[float], None] = time.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._host = host
        self._dial = dial
        self._sudo_password = sudo_password
        self._pause = pause
        self._chance = chance or random.Random()
        self._sessions = Sessions()
        self._connecting = threading.Lock()
        self._opening = threading.Lock()
        self._transport: paramiko.Transport | None = None

    @property
    def host(self) -> str:
        return self._host

    def connect(self) -> None:
        """Open the connection now, so that its errors come now."""
        self._connection()

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        return self._converse(command, on_line)

    def stream(
        self, command: Command, *, take: Take | None = None, feed: Feed | None = None
    ) -> Result:
        return self._converse(command, take=take, feed=feed)

    def _converse(
        self,
        command: Command,
        on_line: OnLine | None = None,
        *,
        take: Take | None = None,
        feed: Feed | None = None,
    ) -> Result:
        wrapped = with_sudo_password(command, self._sudo_password())
        channel = self._open()
        try:
            exchange = Exchange(channel, wrapped, new_mark(), on_line, take=take, feed=feed)
            try:
                with _answered_in_time(channel):
                    channel.exec_command(BOOTSTRAP)
                finished = exchange.carry_on()
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise self._broken(command, str(error)) from error
            except BaseException:
                self._end(channel, exchange)
                raise
            return self._concluded(channel, exchange, command, finished=finished)
        finally:
            # Saying goodbye fails on a connection that has just gone; what counts is known by now.
            with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                channel.close()
            self._sessions.leave()

    def close(self) -> None:
        with self._connecting:
            if self._transport is not None:
                self._transport.close()
                self._transport = None

    def _concluded(
        self, channel: paramiko.Channel, exchange: Exchange, command: Command, *, finished: bool
    ) -> Result:
        if finished:
            return exchange.result()
        if exchange.overdue:
            self._end(channel, exchange)
            return exchange.result(timed_out=True)
        # The transport notices its end a moment after its channels do.
        channel.status_event.wait(1.0)
        if exchange.pid is None and channel.get_transport().is_active():
            raise HostUnreachable(
                self._host,
                f"its login shell did not run the command: {last_line(exchange.noise)}",
                hint=f"see what `ssh {self._host} true` says; the user needs a shell that runs "
                "commands",
            )
        raise self._broken(command, "its connection or its shell on the host was ended")

    def _broken(self, command: Command, why: str) -> HostUnreachable:
        return HostUnreachable(
            self._host,
            f"the conversation broke off: {why}\n  while: {command}",
            hint="whether it was carried out is not known; run the same again, it starts from "
            "what is there",
        )

    def _end(self, channel: paramiko.Channel, exchange: Exchange) -> None:
        """End what still runs on the host, as far as it can be reached."""
        transport = channel.get_transport()
        if exchange.pid is None or not transport.is_active():
            return
        ending = script(_END, str(exchange.pid)).within(CONNECT_S)
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            other = transport.open_session(timeout=CONNECT_S)
            with other:
                with _answered_in_time(other):
                    other.exec_command(BOOTSTRAP)
                Exchange(other, ending, new_mark(), None).carry_on()

    def _connection(self) -> paramiko.Transport:
        with self._connecting:
            if self._transport is None or not self._transport.is_active():
                self._transport = self._dial()
            return self._transport

    def _open(self) -> paramiko.Channel:
        """A session; waits for one of ours to end where sshd allows fewer (MaxSessions)."""
        waits = backoff(self._chance, first_s=0.02, most_s=1.0)
        refusals = losses = 0
        while True:
            self._sessions.enter()
            try:
                transport = self._connection()
                # paramiko keeps one place per connection for why an opening failed.
                with self._opening:
                    return transport.open_session(timeout=CONNECT_S)
            except paramiko.ChannelException as refused:
                refusals = 0 if self._sessions.refused() else refusals + 1
                if refusals > _REFUSALS:
                    raise HostUnreachable(
                        self._host,
                        f"sshd refuses to open a session: {refused}",
                        hint="look at MaxSessions in its sshd_config",
                    ) from refused
                self._pause(next(waits))
            except (paramiko.SSHException, OSError, EOFError) as error:
                self._sessions.leave()
                losses += 1
                # An idle connection may have died unseen, and nothing was begun on it: once more.
                if losses > 1:
                    raise HostUnreachable(
                        self._host, f"the connection was lost: {error!r}", hint="run it again"
                    ) from error
            except BaseException:
                self._sessions.leave()
                raise


@contextlib.contextmanager
def _answered_in_time(channel: paramiko.Channel) -> Generator[None]:
    """paramiko waits for the answer to an exec without a limit, until the channel is closed."""
    alarm = threading.Timer(_EXEC_S, channel.close)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


@dataclass(slots=True)
class Sessions:
    """How many sessions may be open; learns from sshd's refusals."""

    limit: int = SESSIONS
    _open: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open < self.limit)
            self._open += 1

    def leave(self) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify()

    def refused(self) -> bool:
        """Leave, and open no more than others of ours have open now; False if there are none."""
        with self._changed:
            self._open -= 1
            others = self._open
            self.limit = max(1, min(self.limit, others))
            self._changed.notify()
            return others > 0
