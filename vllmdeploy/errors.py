"""Every failure we expect, drawn as a tree; anything else is a bug and keeps its traceback.

VllmdeployError
├── UsageError ............ 2  flags, declined questions
│   └── SettingsError ..... 2  config.env, worker_nodes.txt, environment
├── HostError ............. 3  no conversation with a host
│   ├── HostUnreachable
│   ├── HostKeyUnknown
│   └── HostKeyChanged
├── CommandFailed ......... 4  a program on a host said no
│   └── CommandTimedOut
├── NotHealthy ............ 5  waited, and it did not come
├── PreflightRefused ...... 6  refused before anything was touched
└── Locked ................ 7  another run holds the fleet

A message says where, what and the program's own last line; the hint says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_HOST = 3
EXIT_COMMAND = 4
EXIT_NOT_HEALTHY = 5
EXIT_PREFLIGHT = 6
EXIT_LOCKED = 7
EXIT_BATCH_ERRORS = 8
EXIT_INTERRUPTED = 130


class VllmdeployError(Exception):
    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class UsageError(VllmdeployError):
    exit_code = EXIT_USAGE


class SettingsError(UsageError):
    """All problems of the settings at once, each already worded as `FILE:LINE: what is wrong`."""

    def __init__(self, problems: Sequence[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the settings:"
        super().__init__("\n".join((head, *(f"  {problem}" for problem in problems))), hint=hint)


class HostError(VllmdeployError):
    exit_code = EXIT_HOST

    def __init__(self, host: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{host}: {message}", hint=hint)
        self.host = host


class HostUnreachable(HostError):
    pass


class HostKeyUnknown(HostError):
    pass


class HostKeyChanged(HostError):
    pass


def last_line(text: str, *, limit: int = 400) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else "(no output)"


class CommandFailed(VllmdeployError):
    exit_code = EXIT_COMMAND

    def __init__(
        self, host: str, command: str, status: int, output: str, *, doing: str = "", hint: str = ""
    ) -> None:
        where = f"{host}: {doing}: " if doing else f"{host}: "
        super().__init__(f"{where}exit {status}: {command}\n  {last_line(output)}", hint=hint)
        self.host = host
        self.status = status


class CommandTimedOut(CommandFailed):
    def __init__(
        self,
        host: str,
        command: str,
        limit_s: float,
        output: str,
        *,
        doing: str = "",
        hint: str = "",
    ) -> None:
        where = f"{host}: {doing}: " if doing else f"{host}: "
        VllmdeployError.__init__(
            self,
            f"{where}no answer within {limit_s:g} s: {command}\n  {last_line(output)}",
            hint=hint,
        )
        self.host = host
        self.status = 124


class NotHealthy(VllmdeployError):
    exit_code = EXIT_NOT_HEALTHY


class PreflightRefused(VllmdeployError):
    """All reasons at once; nothing has been touched when this is raised."""

    exit_code = EXIT_PREFLIGHT

    def __init__(self, reasons: Sequence[str], *, hint: str = "") -> None:
        self.reasons = tuple(reasons)
        head = "refused before anything was changed:"
        super().__init__("\n".join((head, *(f"  {reason}" for reason in reasons))), hint=hint)


class Locked(VllmdeployError):
    exit_code = EXIT_LOCKED
