"""Ask a host many facts in one round trip."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from typing import Any, TypeVar

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import CommandTimedOut
from vllmdeploy.tools.access import Access

T = TypeVar("T")

# Every question gets its own time limit where the host has `timeout`, so that one hanging program
# (a stopped Docker daemon, a vendor tool) is named and the other answers still come.
_HEADER = """
mark=$1
if command -v timeout >/dev/null 2>&1; then bounded() { timeout -k 2 "$@"; }
else bounded() { shift; "$@"; }; fi
errors=$(mktemp 2>/dev/null || echo "/tmp/vllmdeploy.$$")
trap 'rm -f "$errors"' EXIT
"""
_QUESTION = """
printf '%s begin\\n' "$mark"
bounded {limit} {command} </dev/null 2>"$errors"
printf '\\n%s errors %s\\n' "$mark" "$?"
cat "$errors"
printf '\\n%s end\\n' "$mark"
"""


def ask(shell: Shell, facts: Sequence[Fact[Any]], access: Access | None = None) -> list[Any]:
    """The facts' parsed answers, in order. Needs no more than one exec on the host."""
    commands = [access.of(fact.command) if access else fact.command for fact in facts]
    mark = f"@@{secrets.token_hex(8)}@@"
    text = _HEADER + "".join(
        _QUESTION.format(limit=f"{command.limit_s:g}", command=shlex.join(command.argv))
        for command in commands
    )
    # They run one after another; a host on which all of them hang is given up earlier than that.
    limit_s = 15 + max((command.limit_s for command in commands), default=0) * 2
    command = Command(("sh", "-c", text, "sh", mark), limit_s=limit_s)
    results = split(shell.run(command), mark, len(facts))
    if not results:
        raise CommandTimedOut(shell.host, "asking for its state", limit_s, "", doing="looking")
    answers = [fact.parse(result) for fact, result in zip(facts, results, strict=False)]
    unanswered = Result(124, timed_out=True)
    answers.extend(fact.parse(unanswered) for fact in facts[len(results) :])
    return answers


def ask_one(shell: Shell, fact: Fact[T], access: Access | None = None) -> T:
    answer: T = ask(shell, (fact,), access)[0]
    return answer


def split(result: Result, mark: str, expected: int) -> list[Result]:
    """The single results out of the joint output; fewer than expected when it was cut short."""
    found: list[Result] = []
    for part in result.stdout.split(f"{mark} begin\n")[1 : expected + 1]:
        stdout, separator, rest = part.partition(f"\n{mark} errors ")
        if not separator:
            break
        status, _, errors = rest.partition("\n")
        stderr = errors.partition(f"\n{mark} end")[0]
        number = int(status)
        found.append(Result(number, stdout, stderr, timed_out=number in (124, 137)))
    return found
