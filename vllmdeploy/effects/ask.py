"""Ask a host many facts in one round trip."""

from __future__ import annotations

import math
import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import CommandFailed, CommandTimedOut
from vllmdeploy.tools.access import Access, Rights, Sudo, decide, rights

T = TypeVar("T")

# Every question gets its own time limit where the host has `timeout`, so that one hanging program
# (a stopped Docker daemon, a vendor tool) is named and the other answers still come. Errors stay
# in the shell's memory: no file is left behind, and a full disk can be told of. Most of what asking
# costs a host are programs started, so what a shell can do by itself starts none.
_HEADER = """
mark=$1 silent= parent=
read -r parent 2>/dev/null </proc/$PPID/comm
if [ "$parent" = timeout ] || timeout -k 2 2 true </dev/null >/dev/null 2>&1
then bounded() { timeout -k 2 "$@"; }
else bounded() { shift; "$@"; }; fi
exec 3>&1
"""
# The number says which question was answered even if the middle of a long output was left out.
# What asks a program that has hung, or could not be used at all, is not run: it would hang as long
# again, or fail as before.
_QUESTION = """
printf '%s {number} begin\\n' "$mark"
case "$silent" in
*{program}*) status=${{silent##*{program}}} errors=; status=${{status%%<*}} ;;
*)
  errors=$(bounded {limit} {command} </dev/null 2>&1 >&3 3>&-; status=$?; printf x; exit "$status")
  status=$? errors=${{errors%x}} ;;
esac
case "$status" in {ends}) silent="$silent"{program}$status ;; esac
printf '\\n%s {number} errors %s\\n%s\\n%s {number} end\\n' "$mark" "$status" "$errors" "$mark"
"""
_TIMED_OUT = (124, 137)
_HANGING = "|".join(map(str, _TIMED_OUT))
_FAILING = "[!0]*"
_HEAD = re.compile(
    r"(?P<number>[0-9]{1,9}) (?P<word>begin|end|errors (?P<status>[0-9]{1,3}))", re.ASCII
)
_SUDO = ("sudo", "-n", "--")
_SUDO_HINT = "set SSH_PASSWORD_FILE, allow sudo -n, or set SUDO=never"


def ask(shell: Shell, facts: Sequence[Fact[Any]], access: Access | None = None) -> list[Any]:
    """The facts' parsed answers, in order: one exec on the host, and one more for those that go
    through sudo, which then happens once and may read a password."""
    commands = [access.of(fact.command) if access else fact.command for fact in facts]
    answers: dict[int, Result] = {}
    for elevated in (False, True):
        chosen = {
            number: command
            for number, command in enumerate(commands)
            if (command.argv[: len(_SUDO)] == _SUDO) is elevated
        }
        if chosen:
            asked = {number: (facts[number], command) for number, command in chosen.items()}
            answers.update(_asked(shell, asked, elevated=elevated))
    return [fact.parse(answers[number]) for number, fact in enumerate(facts)]


def ask_one(shell: Shell, fact: Fact[T], access: Access | None = None) -> T:
    answer: T = ask(shell, (fact,), access)[0]
    return answer


def ask_access(shell: Shell, cluster: str, sudo: Sudo) -> Access:
    return decided(shell, cluster, sudo, ask_one(shell, rights(cluster, sudo)))


def decided(shell: Shell, cluster: str, sudo: Sudo, found: Rights) -> Access:
    """What our user may do on this host. sudo with a password can only be tried by itself."""
    if found.uid is None:
        raise CommandTimedOut(
            shell.host, "id -u", 20, "the host did not say who we are", doing="looking"
        )
    if found.uid != 0 and sudo != "never" and not found.sudo:
        tried = shell.run(Command(("true",)).elevated().within(20))
        found = replace(found, sudo=tried.ok)
    return decide(cluster, sudo, found)


def _asked(
    shell: Shell, asked: dict[int, tuple[Fact[Any], Command]], *, elevated: bool
) -> dict[int, Result]:
    mark = f"@@{secrets.token_hex(8)}@@"
    text = _HEADER + "".join(
        _QUESTION.format(
            number=number,
            program=shlex.quote(f"<{fact.program or number}>"),
            ends=_FAILING if fact.gate else _HANGING,
            limit=math.ceil(command.limit_s),
            command=shlex.join(command.argv[len(_SUDO) if elevated else 0 :]),
        )
        for number, (fact, command) in asked.items()
    )
    # They run one after another; a host on which all of them hang is given up earlier than that.
    limit_s = 15 + max(command.limit_s for _, command in asked.values()) * 2
    joint = Command(("sh", "-c", text, "sh", mark), limit_s=limit_s)
    result = shell.run(joint.elevated() if elevated else joint)
    found = split(result, mark)
    if not found:
        raise _unanswered(shell.host, result, limit_s, elevated=elevated)
    return {number: found.get(number, Result(124, timed_out=True)) for number in asked}


def _unanswered(host: str, result: Result, limit_s: float, *, elevated: bool) -> CommandFailed:
    asked = "sudo sh" if elevated else "sh"
    if result.timed_out or result.ok:
        return CommandTimedOut(host, asked, limit_s, result.output, doing="looking")
    hint = _SUDO_HINT if elevated else ""
    return CommandFailed(host, asked, result.status, result.output, doing="looking", hint=hint)


def split(result: Result, mark: str) -> dict[int, Result]:
    """The single results out of the joint output, by number; one that was cut off is left out."""
    found: dict[int, Result] = {}
    said: dict[int, str] = {}
    failed: dict[int, tuple[int, str]] = {}
    for part in result.stdout.split(f"{mark} ")[1:]:
        head, line_end, text = part.partition("\n")
        word = _HEAD.fullmatch(head)
        if word is None or not line_end:
            continue
        number = int(word["number"])
        if word["word"] == "begin":
            said[number] = text.removesuffix("\n")
        elif word["word"] == "end" and number in failed and number in said:
            status, errors = failed[number]
            timed_out = status in _TIMED_OUT
            found[number] = Result(status, said[number], errors, timed_out=timed_out)
        elif word["status"]:
            failed[number] = (int(word["status"]), text.removesuffix("\n"))
    return found
