"""How many requests there were, and how many failed, in the last seconds."""

from __future__ import annotations


class FaultWindow:
    """One bucket a second, reused in a ring: counting costs the same at any request rate."""

    __slots__ = ("_faults", "_seconds", "_totals", "_width")

    def __init__(self, width_s: int) -> None:
        self._width = width_s
        self._seconds = [-1] * width_s
        self._totals = [0] * width_s
        self._faults = [0] * width_s

    def count(self, now: float, *, fault: bool) -> None:
        second = int(now)
        place = second % self._width
        if self._seconds[place] != second:
            self._seconds[place] = second
            self._totals[place] = self._faults[place] = 0
        self._totals[place] += 1
        self._faults[place] += fault

    def sums(self, now: float) -> tuple[int, int]:
        oldest = int(now) - self._width
        live = [place for place, second in enumerate(self._seconds) if second > oldest]
        return sum(self._totals[p] for p in live), sum(self._faults[p] for p in live)

    def clear(self) -> None:
        self._seconds = [-1] * self._width
