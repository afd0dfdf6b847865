"""One command over one SSH session: its input, its two streams, its end."""

from __future__ import annotations

import math
import selectors
import time

from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.shell import Feed, Inbox, OnLine, Take
from vllmdeploy.effects.ssh_library import paramiko
from vllmdeploy.effects.streams import Passed, Stream
from vllmdeploy.effects.wrap import KILL_GRACE_S, Between, program

_CHUNK = 64 * 1024
_SEND = 32 * 1024
# While the other side does not take more input, no event says when it will.
_STALLED_S = 0.02
_GLANCE_S = 1.0
# After its last word the shell ends at once, and sshd counts the session until then.
_GOODBYE_S = 0.5
# `timeout` on the host ends the command first; this machine steps in where it did not.
_LATE_S = KILL_GRACE_S + 3.0
_BY_TIMEOUT = (124, 137)


class Exchange:
    """After `carry_on`, `result` has the answer, or None where the session ended too early."""

    def __init__(
        self,
        channel: paramiko.Channel,
        command: Command,
        mark: bytes,
        on_line: OnLine | None,
        *,
        take: Take | None = None,
        feed: Feed | None = None,
    ) -> None:
        self._channel = channel
        self._command = command
        self._began = time.monotonic()
        self._unsent = memoryview(program(command, mark) + (command.stdin or b""))
        self._out, self._err = Between(mark), Between(mark)
        self._feed = feed
        self._stdout = Stream(on_line) if take is None else Passed(take)
        self._stderr = Stream(on_line)

    @property
    def pid(self) -> int | None:
        """Who leads the command's processes; None before the login shell has let it begin."""
        return self._out.pid

    @property
    def noise(self) -> str:
        return (self._out.noise + self._err.noise).decode("utf-8", "replace")

    @property
    def overdue(self) -> bool:
        return time.monotonic() - self._began > self._command.limit_s + _LATE_S

    def carry_on(self) -> bool:
        """Until both streams have had their last word (True), or the session or time is over."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel.fileno(), selectors.EVENT_READ)
            if isinstance(self._feed, Inbox):
                selector.register(self._feed.fileno(), selectors.EVENT_READ)
            while not self.overdue:
                over = self._channel.eof_received or self._channel.closed
                moved = self._receive()
                if self._out.status is not None and self._err.status is not None:
                    self._channel.status_event.wait(_GOODBYE_S)
                    return True
                if over and not moved:
                    return False
                if not self._send() and not moved:
                    selector.select(_STALLED_S if self._may_stall else _GLANCE_S)
        return False

    @property
    def _may_stall(self) -> bool:
        """Whether there is something to send, or may be without an event."""
        return bool(self._unsent or (self._feed and not isinstance(self._feed, Inbox)))

    def result(self, *, timed_out: bool = False) -> Result:
        status = self._out.status
        elapsed = time.monotonic() - self._began
        # `timeout` on the host was given whole seconds.
        limit_s = (
            self._command.limit_s
            if math.isinf(self._command.limit_s)
            else math.ceil(self._command.limit_s)
        )
        late = status in _BY_TIMEOUT and elapsed >= limit_s
        stdout, stderr = self._stdout.close(), self._stderr.close()
        if timed_out or late or status is None:
            return Result(_BY_TIMEOUT[0], stdout, stderr, timed_out=True)
        return Result(status, stdout, stderr)

    def _receive(self) -> bool:
        moved = False
        if self._channel.recv_ready():
            self._stdout.feed(self._out.feed(self._channel.recv(_CHUNK)))
            moved = True
        if self._channel.recv_stderr_ready():
            self._stderr.feed(self._err.feed(self._channel.recv_stderr(_CHUNK)))
            moved = True
        return moved

    def _send(self) -> bool:
        if not self._unsent and self._feed is not None:
            self._take_more(self._feed)
        if not self._unsent or not self._channel.send_ready():
            return False
        try:
            sent = self._channel.send(bytes(self._unsent[:_SEND]))
            self._unsent = self._unsent[sent:]
            if not self._unsent and self._feed is None:
                self._channel.shutdown_write()
        except OSError:
            # Closed from the other side: what it said before is still to be read.
            self._unsent, self._feed = self._unsent[:0], None
        return True

    def _take_more(self, feed: Feed) -> None:
        more = feed()
        if more:
            self._unsent = memoryview(more)
        elif more is not None:
            self._feed = None
            self._channel.shutdown_write()
