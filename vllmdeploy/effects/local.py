"""The shell of this machine: a process group of its own for every command."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Generator
from typing import IO

from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.shell import Feed, OnLine, Take
from vllmdeploy.effects.streams import Passed, Stream
from vllmdeploy.effects.wrap import KILL_GRACE_S, encoded, with_sudo_password

_CHUNK = 64 * 1024
# How often a command is looked at whose streams stay silent: it may have ended, and left a child
# behind that holds them open.
_GLANCE_S = 0.1
_STARVED_S = 0.01
_NOT_FOUND, _NOT_EXECUTABLE, _TIMED_OUT = 127, 126, 124


class LocalShell:
    """Runs commands on this machine, under the name the user gave it."""

    def __init__(self, host: str, *, sudo_password: str | None = None) -> None:
        self._host = host
        self._sudo_password = sudo_password

    @property
    def host(self) -> str:
        return self._host

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        return self._converse(command, Stream(on_line), on_line)

    def stream(
        self, command: Command, *, take: Take | None = None, feed: Feed | None = None
    ) -> Result:
        return self._converse(command, Stream(None) if take is None else Passed(take), feed=feed)

    def _converse(
        self,
        command: Command,
        stdout: Stream | Passed,
        on_line: OnLine | None = None,
        *,
        feed: Feed | None = None,
    ) -> Result:
        command = with_sudo_password(command, self._sudo_password)
        argv = [encoded(word) for word in command.argv]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if command.stdin or feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return _not_started(command, error)
        with _group_ended(process):
            return _Conversation(process, command, stdout, Stream(on_line), feed).carry_on()

    def close(self) -> None:
        """Nothing is held between commands."""


def _not_started(command: Command, error: OSError) -> Result:
    status = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
    return Result(status, stderr=f"{command.argv[0]}: {error.strerror}\n")


class _Conversation:
    """One command from its start to its end: its input, its two streams, its time limit."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        command: Command,
        stdout: Stream | Passed,
        stderr: Stream,
        feed: Feed | None,
    ) -> None:
        self._process = process
        self._deadline = time.monotonic() + command.limit_s
        self._signals = iter((signal.SIGTERM, signal.SIGKILL))
        self._timed_out = False
        self._unsent = memoryview(command.stdin or b"")
        self._feed = feed
        self._stdout, self._stderr = stdout, stderr
        self._selector = selectors.DefaultSelector()
        for pipe, stream in ((process.stdout, self._stdout), (process.stderr, self._stderr)):
            if pipe is not None:
                self._selector.register(pipe, selectors.EVENT_READ, stream)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE)

    def carry_on(self) -> Result:
        with self._selector:
            while self._selector.get_map():
                ended = self._process.poll() is not None
                if not self._turn() and ended:
                    break
                if not self._within_limit():
                    break
        stdout, stderr = self._stdout.close(), self._stderr.close()
        if self._timed_out:
            return Result(_TIMED_OUT, stdout, stderr, timed_out=True)
        status = self._wait()
        return Result(status if status >= 0 else 128 - status, stdout, stderr, self._timed_out)

    def _wait(self) -> int:
        """The streams are closed, which a program may do long before it ends."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(max(0.0, self._deadline - time.monotonic()))
            if not self._within_limit():
                return _TIMED_OUT

    def _turn(self) -> bool:
        """Move what can be moved now; False if nothing could."""
        moved = False
        pause = max(0.0, min(_GLANCE_S, self._deadline - time.monotonic()))
        for key, _ in self._selector.select(pause):
            moved = True
            pipe = self._process.stdin
            if pipe is not None and key.fileobj is pipe:
                self._send(pipe)
                continue
            data = os.read(key.fd, _CHUNK)
            if data:
                key.data.feed(data)
            else:
                self._selector.unregister(key.fileobj)
        return moved

    def _send(self, pipe: IO[bytes]) -> None:
        if not self._unsent and self._feed is not None:
            more = self._feed()
            if more is None:
                # A pipe that could take more is no event to wait for.
                time.sleep(_STARVED_S)
                return
            self._unsent = memoryview(more)
            self._feed = self._feed if more else None
        try:
            self._unsent = self._unsent[os.write(pipe.fileno(), self._unsent[:_CHUNK]) :]
        except BrokenPipeError:
            # The command does not want the rest; its status says whether that was a failure.
            self._unsent, self._feed = self._unsent[:0], None
        if not self._unsent and self._feed is None:
            self._selector.unregister(pipe)
            pipe.close()

    def _within_limit(self) -> bool:
        """End the group step by step once the limit has passed; False after the last step."""
        if time.monotonic() < self._deadline:
            return True
        self._timed_out = True
        following = next(self._signals, None)
        if following is None:
            return False
        _signal_group(self._process, following)
        self._deadline = time.monotonic() + (KILL_GRACE_S if following == signal.SIGTERM else 1.0)
        return True


@contextlib.contextmanager
def _group_ended(process: subprocess.Popen[bytes]) -> Generator[None]:
    """Close the pipes; leave nothing running when the caller was interrupted."""
    try:
        yield
    except BaseException:
        _signal_group(process, signal.SIGKILL)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        # One that was just killed needs a moment; one that is not ours to kill is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Gone already, or root's through sudo: either way the caller goes on without it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
