"""Hosts in a distribution: what each has, how fast it has shown to be, how often it failed."""

from __future__ import annotations

from dataclasses import dataclass, field

# A transfer that is silent, or far behind the others, leaves its line mostly idle, whoever's fault
# that is.
IDLE_WEIGHT = 0.1
_SILENT_S = 4.0
_OVERDUE_TIMES = 2.5
_OVERDUE_UNKNOWN_S = 10.0
_OVERDUE_LEAST_S = 2.0
_MUCH_FASTER = 3.0
_REST_MOST_S = 30.0
_TELLING_BYTES = 1024 * 1024
_REMEMBERED = 32


@dataclass(slots=True)
class Peer:
    """`has`, `arriving`, `spared`, `made`: one bit a piece; what is spared it neither needs nor
    sends on, what is made it puts together by itself. `direct`: it speaks rsync with others by
    itself."""

    name: str
    has: int = 0
    arriving: int = 0
    spared: int = 0
    made: int = 0
    receives: bool = True
    serves: bool = True
    direct: bool = True
    strikes: int = 0
    rests_until: float = 0.0
    _best: float = 0.0

    def lacks(self, everything: int) -> int:
        return everything & ~self.has & ~self.spared

    def wants(self, offered: int) -> int:
        """What of this is still to be asked for."""
        return self.lacks(offered) & ~self.arriving & ~self.made

    def struck(self, now: float) -> None:
        """Once may be the other end's fault; a host that fails again and again is left alone for
        longer and longer."""
        self.strikes += 1
        if self.strikes > 1:
            self.rests_until = now + min(_REST_MOST_S, 2.0**self.strikes)

    def paced(self, size: int, seconds: float) -> None:
        """The best of its transfers counts: in the others the other end may have been slow."""
        if size >= _TELLING_BYTES and seconds > 0:
            self._best = max(self._best, size / seconds)

    def much_faster_than(self, other: Peer) -> bool:
        """Both as seen: what an interface says of itself is no proof."""
        return self._best > _MUCH_FASTER * other._best > 0


@dataclass(slots=True)
class Pace:
    """What a transfer usually takes, from the last ones."""

    _rates: list[float] = field(default_factory=list[float])

    def moved(self, size: int, seconds: float) -> None:
        if size >= _TELLING_BYTES and seconds > 0:
            self._rates = [*self._rates[1 - _REMEMBERED :], size / seconds]

    def doubts(self, size: int, since: float, heard: float) -> tuple[float, float]:
        """From when on a transfer counts as idle: no news for long, or not done by then."""
        if not self._rates:
            return heard + _SILENT_S, since + _OVERDUE_UNKNOWN_S
        usual = sorted(self._rates)[len(self._rates) // 2]
        return heard + _SILENT_S, since + max(_OVERDUE_LEAST_S, _OVERDUE_TIMES * size / usual)
