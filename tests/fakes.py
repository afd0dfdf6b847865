"""Shells with rules instead of hosts: an unexpected command fails the test, the history reads."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.shell import OnLine
from vllmdeploy.errors import VllmdeployError

Answer = Callable[[Command], Result]

_SUDO = ("sudo", "-n", "--")


@dataclass
class Rule:
    """What to answer to commands that begin with `words`, on one host or on all."""

    words: tuple[str, ...]
    answer: Answer
    host: str | None = None
    times: int | None = None
    containing: str = ""

    def covers(self, host: str, command: Command) -> bool:
        if self.times == 0 or self.host not in (None, host):
            return False
        argv = command.argv[len(_SUDO) :] if command.argv[: len(_SUDO)] == _SUDO else command.argv
        begins = argv[: len(self.words)] == self.words or (
            command.argv[: len(self.words)] == self.words
        )
        return begins and self.containing in str(command)


def on(
    words: str,
    *,
    stdout: str = "",
    stderr: str = "",
    exit_code: int = 0,
    timed_out: bool = False,
    host: str | None = None,
    times: int | None = None,
    containing: str = "",
    raises: VllmdeployError | None = None,
    answer: Answer | None = None,
) -> Rule:
    """A rule for commands whose first words are `words`; `sudo -n --` in front is looked through.

    Earlier rules win; one with `times` steps aside when used up. `containing` asks for a text
    anywhere in the command, `answer` computes the result, `raises` is a host that does not answer.
    """

    def reply(command: Command) -> Result:
        if raises is not None:
            raise raises
        if answer is not None:
            return answer(command)
        return Result(exit_code, stdout, stderr, timed_out)

    return Rule(tuple(shlex.split(words)), reply, host, times, containing)


@dataclass
class _Transcript:
    rules: tuple[Rule, ...]
    history: list[str] = field(default_factory=list[str])
    commands: list[tuple[str, Command]] = field(default_factory=list[tuple[str, Command]])

    def play(self, host: str, command: Command) -> Result:
        self.history.append(f"{host}: {command}")
        self.commands.append((host, command))
        for rule in self.rules:
            if rule.covers(host, command):
                if rule.times is not None:
                    rule.times -= 1
                return rule.answer(command)
        # Not an Exception, so no `except Exception` under test can swallow it.
        pytest.fail(f"unexpected command: {host}: {command}")


class FakeShell:
    """One host that answers by rules."""

    def __init__(self, *rules: Rule, host: str = "a", transcript: _Transcript | None = None):
        self._host = host
        self._transcript = transcript or _Transcript(rules)
        self.closed = False

    @property
    def host(self) -> str:
        return self._host

    @property
    def history(self) -> list[str]:
        """Every command so far, as `HOST: COMMAND`."""
        return self._transcript.history

    @property
    def commands(self) -> list[tuple[str, Command]]:
        """The same with their stdin and limits."""
        return self._transcript.commands

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        result = self._transcript.play(self._host, command)
        if on_line is not None:
            for line in (*result.stdout.splitlines(), *result.stderr.splitlines()):
                on_line(line)
        return result

    def close(self) -> None:
        self.closed = True


class FakeFleet(Mapping[str, FakeShell]):
    """Several hosts under one set of rules, with one history; usable as `Connected.shells`."""

    def __init__(self, *rules: Rule, hosts: tuple[str, ...] = ("a", "b")):
        self._transcript = _Transcript(rules)
        self._shells = {host: FakeShell(host=host, transcript=self._transcript) for host in hosts}

    def __getitem__(self, host: str) -> FakeShell:
        return self._shells[host]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shells)

    def __len__(self) -> int:
        return len(self._shells)

    @property
    def history(self) -> list[str]:
        return self._transcript.history

    @property
    def commands(self) -> list[tuple[str, Command]]:
        return self._transcript.commands
