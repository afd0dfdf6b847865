"""How a command travels: past any login shell, any noise it makes, and through sudo."""

from __future__ import annotations

import math
import secrets
import shlex

from vllmdeploy.core.command import Command
from vllmdeploy.errors import UsageError

KILL_GRACE_S = 5

_SUDO = ("sudo", "-n", "--")
_MARKS = 2
_NOISE_KEPT = 4096

# Any login shell takes this as it is: no quote inside, no backslash, no `!`, no line end. The
# program follows on stdin, so its length has no limit but the kernel's for one argument.
# `read` takes one byte at a time, so what follows the first line is left for the command.
BOOTSTRAP = "exec /bin/sh -c 'IFS= read -r program && eval \"$program\"'"

# sudo asks for no password where none is needed or one was given just now; then the line with it
# would reach the command. So everything up to the mark is read away before the command starts.
_AFTER_MARK = 'while IFS= read -r line && [ "$line" != "$1" ]; do :; done; shift; exec "$@"'


def encoded(word: str) -> bytes:
    """A word as the bytes an exec takes: what was not UTF-8 on the way in comes out unchanged."""
    if "\0" in word:
        raise UsageError(f"a command cannot carry a NUL byte: {word[:80]!r}")
    try:
        return word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(f"a command cannot carry this text: {word[:80]!r}: {error}") from error


def with_sudo_password(command: Command, password: str | None) -> Command:
    """A command through sudo gets the password as the first line of its stdin, never in argv."""
    if password is None or command.argv[: len(_SUDO)] != _SUDO:
        return command
    mark = secrets.token_hex(12)
    argv = ("sudo", "-S", "-p", "", "--", "sh", "-c", _AFTER_MARK, "sh", mark)
    first_lines = encoded(f"{password}\n{mark}\n")
    return Command(
        (*argv, *command.argv[len(_SUDO) :]),
        stdin=first_lines + (command.stdin or b""),
        limit_s=command.limit_s,
    )


def new_mark() -> bytes:
    """A text that no program says by itself."""
    return b"vd-" + secrets.token_hex(12).encode()


def program(command: Command, mark: bytes) -> bytes:
    """One line of POSIX shell that runs the command between marks on both streams.

    Each stream then reads: noise, `MARK:PID:`, what the command said, `MARK:STATUS:`. PID leads
    the process group. The shell stays behind the command, so that a signal becomes a status too.
    """
    prefix, rest = _sudo_prefix(command.argv)
    say = b"printf '%s:%s:' " + mark
    steps = (
        # A line end inside a word travels as "$n", because the program is a single line.
        b'n=$(printf "\\nx"); n=${n%x}',
        b"PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin",
        b"set -- " + _joined(rest),
        _started_by(command, prefix),
        b"set -- " + _joined(prefix) + b' "$@"',
        say + b" $$; " + say + b" $$ >&2",
        b'"$@"; s=$?',
        say + b" $s; " + say + b" $s >&2",
        b"exit $s\n",
    )
    return b"; ".join(steps)


def _started_by(command: Command, prefix: tuple[str, ...]) -> bytes:
    """`timeout` ends the command on the host even if this machine is gone by then.

    It stands behind sudo, since a plain user cannot signal root's processes, unless the rules of
    sudo are too narrow for it. Without both, `env` keeps the shell's own words out.
    """
    unlimited = b":" if prefix else b'set -- env "$@"'
    if math.isinf(command.limit_s):
        return unlimited
    limit = b"timeout -k %d %d" % (KILL_GRACE_S, max(1, math.ceil(command.limit_s)))
    usable = limit + b" true </dev/null >/dev/null 2>&1"
    if prefix == _SUDO:
        usable += b" && sudo -n -l timeout </dev/null >/dev/null 2>&1"
    return b"if " + usable + b"; then set -- " + limit + b' "$@"; else ' + unlimited + b"; fi"


def _sudo_prefix(argv: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if argv[0] != "sudo" or "--" not in argv:
        return (), argv
    end = argv.index("--") + 1
    return argv[:end], argv[end:]


def _joined(words: tuple[str, ...]) -> bytes:
    for word in words:
        encoded(word)
    return encoded(shlex.join(words).replace("\n", "'\"$n\"'"))


class Between:
    """What a command said on one stream, without the noise around it; a piece at a time."""

    def __init__(self, mark: bytes) -> None:
        self._begin = mark + b":"
        self._held = b""
        self._values: list[int] = []
        self.noise = b""

    @property
    def pid(self) -> int | None:
        return self._values[0] if self._values else None

    @property
    def status(self) -> int | None:
        return self._values[1] if len(self._values) > 1 else None

    def feed(self, data: bytes) -> bytes:
        """The part of the command's own output that is certain by now."""
        said = b""
        self._held += data
        while len(self._values) < _MARKS and self._held:
            before, found, after = self._held.partition(self._begin)
            value, closed, rest = after.partition(b":")
            if not found:
                keep = _overlap(before, self._begin)
                before, self._held = before[: len(before) - keep], before[len(before) - keep :]
            elif not closed:
                self._held = self._begin + after
            said += self._own(before)
            if not closed:
                return said
            self._values.append(int(value))
            self._held = rest
        self._held = b""
        return said

    def _own(self, data: bytes) -> bytes:
        if self._values:
            return data
        self.noise = (self.noise + data)[-_NOISE_KEPT:]
        return b""


def _overlap(data: bytes, mark: bytes) -> int:
    """How many bytes at the end of `data` could be the beginning of `mark`."""
    for length in range(min(len(data), len(mark) - 1), 0, -1):
        if data.endswith(mark[:length]):
            return length
    return 0
