"""Who sends which piece of a model to whom: every finished piece becomes a source at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from vllmdeploy.plan.transfer_books import Books
from vllmdeploy.plan.transfer_peers import IDLE_WEIGHT, Pace, Peer
from vllmdeploy.plan.transfer_pieces import Piece, Transfer, lanes_for

_RELAYS = 4
_RETRY_FIRST_S, _RETRY_MOST_S = 1.0, 30.0
_STRIKES_OUT = 6


@dataclass(slots=True)
class _Running:
    transfer: Transfer
    heard: float
    moving: bool = True


@dataclass(slots=True)
class Swarm:
    """The state of one distribution. It does nothing itself: it is told what happened, and says
    what is to be started; the time is always an argument.
    """

    pieces: Sequence[Piece]
    lanes: int = 0
    relays: int = _RELAYS
    peers: dict[str, Peer] = field(default_factory=dict[str, Peer])
    pace: Pace = field(default_factory=Pace)
    _running: dict[int, _Running] = field(default_factory=dict[int, _Running])
    _barred: dict[tuple[str, str], tuple[float, int]] = field(
        default_factory=dict[tuple[str, str], tuple[float, int]]
    )
    _numbers: count[int] = field(default_factory=count)
    _ranges: dict[int, int] = field(init=False)
    _files: dict[str, int] = field(init=False)
    _waiting: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _made: list[tuple[str, Piece]] = field(default_factory=list[tuple[str, Piece]])

    def __post_init__(self) -> None:
        self.lanes = self.lanes or lanes_for(self.pieces)
        of_path: dict[str, int] = {}
        for piece in self.pieces:
            if piece.start is not None:
                of_path[piece.paths[0]] = of_path.get(piece.paths[0], 0) | piece.bit
        whole = [piece for piece in self.pieces if piece.in_ranges]
        self._files = {piece.paths[0]: piece.number for piece in whole}
        self._ranges = {piece.number: of_path[piece.paths[0]] for piece in whole}

    @property
    def everything(self) -> int:
        return (1 << len(self.pieces)) - 1

    def join(
        self,
        name: str,
        *,
        has: Iterable[int] = (),
        spared: Iterable[int] = (),
        whole: Iterable[int] = (),
        receives: bool = True,
        serves: bool = True,
        direct: bool = True,
    ) -> None:
        """A host with the pieces it has by now; it may come while others are at work. `whole`:
        files that it is to get as a whole, although they are cut into ranges."""
        known = self.peers.get(name)
        arriving = known.arriving if known else 0
        as_whole = set(whole)
        self.peers[name] = Peer(
            name,
            has=_bits(has),
            arriving=arriving,
            spared=_bits(spared) | sum(self._ranges[number] for number in as_whole),
            made=_bits(self._ranges.keys() - as_whole),
            receives=receives,
            serves=serves,
            direct=direct,
        )
        for number in self._ranges:
            self._if_all_came(self.peers[name], number)

    def lost(self, name: str) -> None:
        """Out of reach: nothing new is asked of it. What runs there ends, and is told, by itself:
        a transfer that is taken for dead may still write."""
        self.peers[name].receives = self.peers[name].serves = False

    def complete(self, name: str) -> bool:
        return name in self.peers and not self.peers[name].lacks(self.everything)

    @property
    def running(self) -> tuple[Transfer, ...]:
        return tuple(one.transfer for one in self._running.values())

    def missing(self, name: str) -> tuple[Piece, ...]:
        everything = self.everything
        lacks = self.peers[name].lacks(everything) if name in self.peers else everything
        return tuple(piece for piece in self.pieces if piece.bit & lacks)

    @property
    def hopeless(self) -> tuple[str, ...]:
        """Hosts that miss what nobody left has or will have, or whom nothing reaches."""
        there = 0
        for peer in self.peers.values():
            there |= peer.has if peer.serves else 0
        return tuple(
            name
            for name, peer in self.peers.items()
            if peer.receives
            and not peer.arriving
            and (peer.strikes >= _STRIKES_OUT or peer.lacks(self.everything) & ~peer.made & ~there)
        )

    def lacking(self, name: str) -> int:
        """Bytes that are still to come, or to come once more."""
        peer = self.peers.get(name)
        return sum(
            piece.size
            for piece in self.missing(name)
            if not piece.in_ranges or (peer is not None and not piece.bit & peer.made)
        )

    # What happened

    def heard(self, transfer: Transfer, now: float) -> None:
        """More of its bytes are over there."""
        one = self._running.get(transfer.number)
        if one is not None:
            one.heard = now

    def moved(self, transfer: Transfer, now: float) -> None:
        """All bytes are over there, and are now being verified: the line is free again."""
        one = self._running.get(transfer.number)
        if one is None or not one.moving:
            return
        one.moving = False
        self.pace.moved(transfer.piece.size, now - transfer.since)
        for name in (transfer.source, transfer.target):
            if name in self.peers:
                self.peers[name].paced(transfer.piece.size, now - transfer.since)

    def arrived(self, transfer: Transfer, now: float) -> None:
        """Verified: from now on the target sends it too."""
        self.moved(transfer, now)
        if self._ended(transfer):
            target = self.peers[transfer.target]
            target.has |= transfer.piece.bit
            if transfer.piece.in_ranges:
                ranges = self._ranges[transfer.piece.number]
                target.has, target.spared = target.has | ranges, target.spared & ~ranges
            elif transfer.piece.start is not None:
                self._waiting.setdefault(transfer.target, []).append(transfer.source)
                self._if_all_came(target, self._files[transfer.piece.paths[0]])
            for peer in (target, self.peers[transfer.source]):
                peer.strikes, peer.rests_until = 0, 0.0
            self._barred.pop((transfer.source, transfer.target), None)

    def failed(self, transfer: Transfer, now: float, *, bad_source: bool = False) -> None:
        """This pair waits longer each time. `bad_source`: what the source has is not the piece."""
        if not self._ended(transfer):
            return
        source, target = self.peers[transfer.source], self.peers[transfer.target]
        if bad_source:
            source.has &= ~(transfer.piece.bit | self._ranges.get(transfer.piece.number, 0))
            return
        for peer in (source, target):
            peer.struck(now)
        pair = (transfer.source, transfer.target)
        times = self._barred.get(pair, (0.0, 0))[1]
        wait = min(_RETRY_MOST_S, _RETRY_FIRST_S * 2**times)
        self._barred[pair] = (now + wait, times + 1)

    def _if_all_came(self, peer: Peer, number: int) -> None:
        piece, ranges = self.pieces[number], self._ranges[number]
        if peer.made & piece.bit & ~peer.has and peer.has & ranges == ranges:
            self._made.append((peer.name, piece))

    def all_came(self) -> tuple[tuple[str, Piece], ...]:
        """Hosts, and the files of which they have every range by now: each is told once."""
        told, self._made = tuple(self._made), []
        return told

    def put_together(self, name: str, piece: Piece) -> None:
        """The file is what it should be."""
        self.peers[name].has |= piece.bit

    def fell_apart(self, name: str, piece: Piece) -> None:
        """It is not: which of its ranges is wrong is found by comparing all of it with a source."""
        peer, ranges = self.peers[name], self._ranges[piece.number]
        peer.made &= ~piece.bit
        peer.has, peer.spared = peer.has & ~ranges, peer.spared | ranges

    def _ended(self, transfer: Transfer) -> bool:
        """False where it was told before."""
        if self._running.pop(transfer.number, None) is None:
            return False
        self.peers[transfer.target].arriving &= ~transfer.piece.bit
        return True

    # What to do

    def next(self, now: float) -> tuple[Transfer, ...]:
        """The transfers to start now; they count as running from here on."""
        books = self._books(now)
        started: list[Transfer] = []
        waiting = [(books.rank(s, t), s, t) for s in books.sources for t in books.targets]
        heap = [(rank, s, t) for rank, s, t in waiting if rank is not None]
        heapq.heapify(heap)
        while heap:
            rank, source, target = heapq.heappop(heap)
            current = books.rank(source, target)
            if current is None:
                continue
            if current != rank:
                heapq.heappush(heap, (current, source, target))
                continue
            started.append(self._start(books, source, target, current[-1], now))
            # Where a lane is left at both ends, these two may get another piece.
            again = books.rank(source, target)
            if again is not None:
                heapq.heappush(heap, (again, source, target))
        return tuple(started)

    def _books(self, now: float) -> Books:
        return Books(
            self.peers,
            (
                (one.transfer, self._weight(one, now))
                for one in self._running.values()
                if one.moving
            ),
            now=now,
            everything=self.everything,
            lanes=self.lanes,
            relays=self.relays,
            barred=lambda source, target: self._barred.get((source, target), (0.0, 0))[0] > now,
            goes_on=self._goes_on,
        )

    def _goes_on(self, source: str, target: str, number: int) -> bool:
        """Ranges come in conversations; whoever sent the last one can send the next at once."""
        is_range = self.pieces[number].start is not None
        return is_range and source in self._waiting.get(target, ())

    def _start(self, books: Books, source: str, target: str, number: int, now: float) -> Transfer:
        piece = self.pieces[number]
        relayed = not (self.peers[source].direct and self.peers[target].direct)
        stream = self._free_stream(source, target)
        goes_on = self._goes_on(source, target, number)
        transfer = Transfer(
            next(self._numbers), piece, source, target, now, relayed, stream, goes_on
        )
        waiting = self._waiting.get(target, [])
        if goes_on:
            waiting.remove(source)
        # What waits for long is ended (`effects.transfer_lanes`).
        del waiting[: -self.lanes]
        self._running[transfer.number] = _Running(transfer, now)
        self.peers[target].arriving |= piece.bit
        books.started(transfer)
        return transfer

    def _free_stream(self, source: str, target: str) -> int:
        """What is being verified needs its connection no more."""
        moving = [one.transfer for one in self._running.values() if one.moving]
        taken = {one.stream for one in moving if (one.source, one.target) == (source, target)}
        return next(stream for stream in count() if stream not in taken)

    def wake_at(self, now: float) -> float | None:
        """When, without any news, there may be something to start."""
        moments = [until for until, _ in self._barred.values() if until > now]
        moments += [peer.rests_until for peer in self.peers.values() if peer.rests_until > now]
        moments += [
            moment
            for one in self._running.values()
            if one.moving
            for moment in self.pace.doubts(one.transfer.piece.size, one.transfer.since, one.heard)
            if moment > now
        ]
        return min(moments, default=None)

    def _weight(self, one: _Running, now: float) -> float:
        transfer = one.transfer
        doubts = self.pace.doubts(transfer.piece.size, transfer.since, one.heard)
        return IDLE_WEIGHT if now >= min(doubts) else 1.0


def _bits(numbers: Iterable[int]) -> int:
    return sum({1 << number for number in numbers})
