"""Whose lanes are taken at one moment, which pieces are rare, and so which pair comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from vllmdeploy.plan.transfer_peers import Peer
from vllmdeploy.plan.transfer_pieces import Transfer

# Streams at one end, counting those that are too slow to fill their lane.
_MOST_STREAMS = 6

Rank = tuple[int, float, bool, int, int, int, float, int]


class Books:
    """Loads and rarities at one moment, kept right while transfers are handed out.

    `running`: how much of a lane each transfer takes. `relays`: how many at once may go through
    the control machine. `barred`: whether this source and this target are kept apart for now.
    `goes_on`: whether a conversation of theirs waits for this piece, which then costs no beginning.
    """

    def __init__(
        self,
        peers: Mapping[str, Peer],
        running: Iterable[tuple[Transfer, float]],
        *,
        now: float,
        everything: int,
        lanes: int,
        relays: int,
        barred: Callable[[str, str], bool],
        goes_on: Callable[[str, str, int], bool],
    ) -> None:
        self._peers, self._barred, self._goes_on = peers, barred, goes_on
        self._now, self._everything = now, everything
        self._lanes, self._most_relays = lanes, relays
        self._up: dict[str, float] = {}
        self._down: dict[str, float] = {}
        self._streams: dict[tuple[str, str], int] = {}
        self._doubts: dict[str, int] = {}
        self._relays = 0
        for transfer, weight in running:
            self._book(transfer, weight)
        self._copies: dict[int, int] = _copies(peers)
        self.targets = [peer.name for peer in peers.values() if self._may_receive(peer)]
        self.sources = [peer.name for peer in peers.values() if self._may_send(peer)]

    def _book(self, transfer: Transfer, weight: float) -> None:
        source, target = transfer.source, transfer.target
        self._up[source] = self._up.get(source, 0.0) + weight
        self._down[target] = self._down.get(target, 0.0) + weight
        for end in (("up", source), ("down", target)):
            self._streams[end] = self._streams.get(end, 0) + 1
        if weight < 1:
            for name in (source, target):
                self._doubts[name] = self._doubts.get(name, 0) + 1
        self._relays += transfer.relayed

    def started(self, transfer: Transfer) -> None:
        self._book(transfer, 1.0)
        self._copies = _copies(self._peers)

    def _may_receive(self, peer: Peer) -> bool:
        missing = peer.wants(self._everything)
        ready = peer.receives and self._now >= peer.rests_until
        return ready and bool(missing) and self._free("down", peer.name)

    def _may_send(self, peer: Peer) -> bool:
        ready = peer.serves and self._now >= peer.rests_until
        return ready and bool(peer.has) and self._free("up", peer.name)

    def _free(self, way: str, name: str) -> bool:
        load = (self._up if way == "up" else self._down).get(name, 0.0)
        if self._streams.get((way, name), 0) >= _MOST_STREAMS:
            return False
        return load + 0.5 < self._lanes

    def rank(self, source: str, target: str) -> Rank | None:
        """What speaks for this pair, the least first, with the piece at its end."""
        giver, taker = self._peers[source], self._peers[target]
        if source == target or not self._free("up", source) or not self._free("down", target):
            return None
        if self._barred(source, target):
            return None
        if not (giver.direct and taker.direct) and self._relays >= self._most_relays:
            return None
        useful = taker.wants(giver.has)
        for copies, bits in sorted(self._copies.items()):
            number = self._first(giver, useful & bits)
            if number is not None:
                return (
                    giver.strikes + self._doubts.get(source, 0),
                    self._down.get(target, 0.0),
                    not self._goes_on(source, target, number),
                    giver.has.bit_count(),
                    copies,
                    (taker.has | taker.arriving).bit_count(),
                    self._up.get(source, 0.0),
                    number,
                )
        return None

    def _first(self, giver: Peer, bits: int) -> int | None:
        """The biggest of these pieces for which there is no much faster source."""
        while bits:
            lowest = bits & -bits
            if not any(
                other.has & lowest and other.serves and other.much_faster_than(giver)
                for other in self._peers.values()
            ):
                return lowest.bit_length() - 1
            bits ^= lowest
        return None


def _copies(peers: Mapping[str, Peer]) -> dict[int, int]:
    """For every number of copies, those on their way included, the pieces that have so many."""
    classes: dict[int, int] = {}
    # Bit-sliced counting: `levels[k]` holds the pieces with at least k copies.
    levels: list[int] = []
    for peer in peers.values():
        carry = peer.has | peer.arriving
        for position, level in enumerate(levels):
            levels[position], carry = level | carry, level & carry
        levels.append(carry)
    for position, level in enumerate(levels):
        above = levels[position + 1] if position + 1 < len(levels) else 0
        if level & ~above:
            classes[position + 1] = level & ~above
    return classes
