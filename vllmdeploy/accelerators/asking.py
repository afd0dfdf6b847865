"""Asking vendor tools: several questions in one script, and plain words for every bad answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.errors import last_line

LIMIT_S = 20.0
_MISSING = 127
_MARK = re.compile(r"^@@ (\w+)(?: (\d{1,3}))?\s*$", re.MULTILINE)
# English words and dots for decimals; and the places where vendors put tools that a
# non-interactive SSH session has not on its PATH.
_HEAD = """\
export LC_ALL=C LANG=C
PATH=$PATH:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin:/opt/rocm/bin:/opt/hyhal/bin
PATH=$PATH:/opt/mxdriver/bin:/usr/local/corex/bin:/usr/bin/musa
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one question got. No status: the tool was still running when time was over."""

    text: str = ""
    status: int | None = None

    @property
    def missing(self) -> bool:
        return self.status == _MISSING

    @property
    def ok(self) -> bool:
        return self.status == 0


def ask(questions: Mapping[str, str], *arguments: str, limit_s: float = LIMIT_S) -> Command:
    """Each question is fixed shell text; its answer arrives between marks, with its status."""
    text = "".join(
        f"echo '@@ {name}'\n{{ {question}\n}} 2>&1\nended=$?; echo; echo \"@@ end $ended\"\n"
        for name, question in questions.items()
    )
    return script(_HEAD + text, *arguments).within(limit_s)


def answers(result: Result) -> Mapping[str, Answer]:
    """The answers by name. A question that was never reached is not in it."""
    found: dict[str, Answer] = {}
    pieces = _MARK.split(result.stdout)
    for name, status, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if name != "end":
            found[name] = Answer(text.strip("\n"))
        elif found and status:
            last = next(reversed(found))
            found[last] = Answer(found[last].text, int(status))
    return found


def text_of(said: Mapping[str, Answer], name: str) -> str:
    return said[name].text if name in said else ""


def complaint(tool: str, answer: Answer | None, result: Result) -> str:
    """Why there is no usable answer, or nothing when there may be one."""
    if answer is None or answer.status is None:
        if result.timed_out:
            return f"{tool} gave no answer in time: the driver may hang (see dmesg)"
        return f"{tool} was not asked: {last_line(result.output)}"
    if answer.missing:
        return f"{tool} was not found on this host: is the vendor's driver installed?"
    if not answer.ok:
        return f"{tool} failed (exit {answer.status}): {last_line(answer.text)}"
    return ""


def unreadable(tool: str, text: str) -> str:
    if not text.strip():
        return f"{tool} answered nothing"
    if "Traceback (most recent call last)" in text:
        return f"{tool} crashed: {last_line(text)}"
    return f"{tool} answered something unexpected: {_first_line(text)}"


def _first_line(text: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip())[:200]
