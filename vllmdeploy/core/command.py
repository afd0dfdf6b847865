"""A command is a value: a program and its arguments, never a line of shell."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace

from vllmdeploy.errors import CommandFailed, CommandTimedOut

DEFAULT_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Command:
    """One program and its arguments.

    `stdin` never shows in `str()`, in logs or in `ps`: secrets travel there. `open_stdin` says that
    it is a text without any, which a plan shows beneath the command.
    `root` says that it needs more rights than a plain user has on a host where that matters
    (Docker's socket, the state folder); `elevated` is applied by whoever knows the host.
    """

    argv: tuple[str, ...]
    stdin: bytes | None = field(default=None, repr=False)
    limit_s: float = DEFAULT_LIMIT_S
    root: bool = False
    open_stdin: bool = False

    def __str__(self) -> str:
        return shlex.join(self.argv)

    @property
    def text(self) -> str:
        """What of `stdin` people may read before they agree."""
        return self.stdin.decode() if self.stdin is not None and self.open_stdin else ""

    def within(self, limit_s: float) -> Command:
        return replace(self, limit_s=limit_s)

    def elevated(self) -> Command:
        """The same command through sudo. A shell that knows a sudo password swaps `-n` for `-S`."""
        return replace(self, argv=("sudo", "-n", "--", *self.argv), root=False)


def script(text: str, *arguments: str, stdin: bytes | None = None, root: bool = False) -> Command:
    """A fixed POSIX shell text; what varies arrives as `$1`, `$2`, ...: nothing is pasted in."""
    return Command(("sh", "-c", text, "sh", *arguments), stdin=stdin, root=root)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind. A non-zero status is a result, not an error: see `check`."""

    status: int
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.timed_out

    @property
    def output(self) -> str:
        return f"{self.stdout}\n{self.stderr}" if self.stderr.strip() else self.stdout


def check(
    host: str, command: Command, result: Result, *, doing: str = "", hint: str = ""
) -> Result:
    """Turn a failed result into an error, for places where success is required."""
    if result.timed_out:
        raise CommandTimedOut(
            host, str(command), command.limit_s, result.output, doing=doing, hint=hint
        )
    if result.status != 0:
        raise CommandFailed(
            host, str(command), result.status, result.output, doing=doing, hint=hint
        )
    return result
