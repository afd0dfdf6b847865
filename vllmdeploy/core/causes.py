"""Which line of a program's output says what went wrong. An engine's last line is often only that
something did ("see root cause above"), and each process above the one that failed repeats that."""

from __future__ import annotations

import re
from dataclasses import dataclass

# At the beginning of a line, or after the file in vLLM's logs: `... [core.py:9] ValueError: why`.
# Ray's own names only where a far traceback ran; what it came to is the last line of that.
_NAMED = re.compile(
    r"(?:^|[\])] )((?!\S*RayTaskError\()(?:\w+\.)*\w+(?:Error|Exception)\b.*\S)\s*$"
)
_HARMLESS = re.compile(r"\b(?:DEBUG|INFO|WARNING)\b")
# Failures that follow from one another come closer together than this.
_APART_S = 30.0


def named(line: str) -> str:
    """The error that a line names, without what stands before it; empty where it names none."""
    found = _NAMED.search(line)
    if found is None or _HARMLESS.search(line, 0, found.start(1)):
        return ""
    return found[1]


@dataclass(slots=True)
class FirstOfBurst:
    """The line that named an error first, of those that came shortly after one another."""

    _line: str = ""
    _last_at: float = 0.0

    def feed(self, line: str, now: float) -> None:
        if not named(line):
            return
        if not self.at_end(now):
            self._line = line
        self._last_at = now

    def at_end(self, now: float) -> str:
        """For a program that ended now; empty where the last error was long before."""
        return self._line if self._line and now - self._last_at <= _APART_S else ""
