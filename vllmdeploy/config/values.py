"""Values of settings that are more than text, and what every text has to be to become one."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import cast

VALUE_LIMIT = 32_768
_REFUSED_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """All ports from `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def ports(self) -> range:
        return range(self.first, self.last + 1)

    def overlap(self, other: PortRange) -> PortRange | None:
        first, last = max(self.first, other.first), min(self.last, other.last)
        return PortRange(first, last) if first <= last else None


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """An amount of memory; `str()` is the form that Docker reads, in the largest exact unit."""

    bytes: int

    def __str__(self) -> str:
        for unit in "tgmk":
            if self.bytes % UNITS[unit] == 0:
                return f"{self.bytes // UNITS[unit]}{unit}"
        return f"{self.bytes}b"


def shown(text: str, *, limit: int = 60) -> str:
    """A value as a message may repeat it: quoted, control characters escaped, cut."""
    return repr(text if len(text) <= limit else f"{text[:limit]}...")


def fault(text: str) -> str | None:
    """What makes a text unfit to be any value at all, or None."""
    if len(text) > VALUE_LIMIT:
        return f"{len(text):,} characters are too many: at most {VALUE_LIMIT:,}"
    for character in text:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            if "\udc80" <= character <= "\udcff":
                return "not UTF-8 text"
            return f"holds the control or invisible character U+{ord(character):04X}"
    return None


def suggestion(word: str, known: Collection[str]) -> str:
    """`; did you mean X?`, or nothing when no known word is near."""
    near = get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def text_of(value: object) -> str:
    """The text that its parser reads back as the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value)
        return " ".join(f"{name}={_quoted(str(text))}" for name, text in pairs.items())
    if isinstance(value, (tuple, list)):
        return shlex.join(str(item) for item in cast("Sequence[object]", value))
    return str(value)


def _quoted(text: str) -> str:
    # shlex.quote leaves a comma bare, which would split the value in a comma-separated list.
    return "'" + text.replace("'", "'\"'\"'") + "'" if "," in text else shlex.quote(text)
