"""Carry out a distribution: start what the swarm says, and tell it what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.transfer_events import Again, OnSyncEvent, Rate, progress
from vllmdeploy.effects.transfer_freight import Arrival, Freight, Party, is_final
from vllmdeploy.effects.transfer_hosts import Hosts, Work
from vllmdeploy.effects.transfer_lanes import Lanes
from vllmdeploy.effects.transfer_news import News, Told
from vllmdeploy.effects.transfer_pull import fetch
from vllmdeploy.effects.transfer_ranges import ShortSource, put_together
from vllmdeploy.errors import HostError, VllmdeployError
from vllmdeploy.plan.transfer import Swarm
from vllmdeploy.plan.transfer_pieces import Piece, Transfer

_TOLD_EVERY_S = 1.0
_GATHERED_S = 1.0


@dataclass(slots=True)
class Distribution:
    """`run` returns when every host has the model or has failed for good."""

    pieces: Sequence[Piece]
    freight: Freight
    work: Work
    on_event: OnSyncEvent
    stop: Stop
    clock: Callable[[], float] = time.monotonic
    wire: int = 0
    _swarm: Swarm = field(init=False)
    _hosts: Hosts = field(init=False)
    _news: News = field(default_factory=News)
    _lanes: Lanes = field(default_factory=Lanes)
    _sources: dict[str, Party] = field(default_factory=dict[str, Party])
    _over: dict[int, int] = field(default_factory=dict[int, int])
    _begun: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    _doubted: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    _told: float = 0.0
    _begins_at: float | None = None
    _rate: Rate = field(default_factory=Rate)

    def __post_init__(self) -> None:
        self._swarm = Swarm(self.pieces)
        self._hosts = Hosts(
            swarm=self._swarm,
            freight=self.freight,
            work=self.work,
            news=self._news,
            on_event=self.on_event,
            stop=self.stop,
            clock=self.clock,
            began=self.clock(),
        )

    def run(
        self, sources: Sequence[Party], targets: Sequence[Party]
    ) -> Mapping[str, VllmdeployError]:
        """The hosts that do not have it in the end, and why."""
        everything = range(len(self.pieces))
        for party in sources:
            self._sources[party.name] = party
            self._swarm.join(party.name, has=everything, receives=False, direct=party.member.direct)
        for party in targets:
            self._hosts.add(party)
        try:
            while not self.stop.event.is_set() and self._hosts.open(self.clock()):
                self._turn()
        except BaseException:
            self.stop.event.set()
            raise
        finally:
            self._lanes.end()
        self._tell(always=True)
        return self._hosts.errors

    def _turn(self) -> None:
        now = self.clock()
        gathering = self._gathering(now)
        for transfer in () if gathering else self._swarm.next(now):
            self._begin(transfer)
        for name, piece in self._swarm.all_came():
            self._put_together(name, piece)
        self._hosts.give_up()
        wake = self._begins_at if gathering else self._swarm.wake_at(now)
        wait = min(_TOLD_EVERY_S, max(0.01, wake - now) if wake is not None else _TOLD_EVERY_S)
        self._news.heed(wait)
        self._tell()

    def _gathering(self, now: float) -> bool:
        """The first host that is prepared would be given all lanes of the source, and the others
        would wait for whole pieces: they are waited for, but not long."""
        if self._begins_at is None and self._hosts.joined:
            self._begins_at = now + _GATHERED_S
        begun = self._begins_at is not None and now >= self._begins_at
        return self._hosts.preparing and not begun

    def _tell(self, *, always: bool = False) -> None:
        now = self.clock()
        if not always and now < self._told + _TOLD_EVERY_S:
            return
        self._told = now
        there = {name: self._there(name) for name in self._hosts.joined}
        for transfer in self._swarm.running:
            if transfer.target in there:
                there[transfer.target] += self._over.get(transfer.number, 0)
        total = self.freight.manifest.total
        rate = self._rate.at(now, sum(there.values()))
        self.on_event(progress(there, total, rate))

    def _there(self, name: str) -> int:
        return self.freight.manifest.total - self._swarm.lacking(name)

    # A piece's way

    def _party(self, name: str) -> Party:
        return self._sources[name] if name in self._sources else self._hosts.party(name)

    def _begin(self, transfer: Transfer) -> None:
        key = (transfer.target, transfer.piece.number)
        tell = self._news.tell
        arrival = Arrival(
            on_bytes=lambda count: tell(partial(self._heard, transfer, count)),
            on_moved=lambda: tell(lambda: self._swarm.moved(transfer, self.clock())),
        )
        call = partial(
            fetch,
            transfer,
            self._party(transfer.source),
            self._party(transfer.target),
            self.freight,
            arrival,
            self._lanes,
            resumes=key in self._begun or self._hosts.partly(transfer.target),
            checksum=key in self._doubted,
        )
        self._begun.add(key)

        def work() -> Told:
            try:
                return partial(self._came, transfer, arrival, call())
            except VllmdeployError as error:
                return partial(self._did_not_come, transfer, arrival, error)

        self._news.beside(f"{transfer.source} to {transfer.target}", work)

    def _heard(self, transfer: Transfer, count: int) -> None:
        self._over[transfer.number] = count
        self._swarm.heard(transfer, self.clock())

    def _came(self, transfer: Transfer, arrival: Arrival, wrong: tuple[str, ...]) -> None:
        self._over.pop(transfer.number, None)
        self.wire += arrival.wire
        key = (transfer.target, transfer.piece.number)
        if not wrong:
            self._swarm.arrived(transfer, self.clock())
            self._hosts.served(transfer.target)
            return
        # What is wrong although every byte was compared with the source is wrong there too.
        bad_source = key in self._doubted
        self._doubted.add(key)
        self._swarm.failed(transfer, self.clock(), bad_source=bad_source)
        text = f"{wrong[0]} from {transfer.source} is not what the manifest says"
        self.on_event(Again(transfer.target, text))

    def _did_not_come(self, transfer: Transfer, arrival: Arrival, error: VllmdeployError) -> None:
        self._over.pop(transfer.number, None)
        self.wire += arrival.wire
        short = isinstance(error, ShortSource)
        self._swarm.failed(transfer, self.clock(), bad_source=short)
        self._hosts.troubled(transfer.target, error)
        if isinstance(error, HostError) and error.host in self._sources:
            self._swarm.lost(error.host)
        elif isinstance(error, HostError) and error.host in self._hosts:
            self._hosts.lost(error.host, error)
        elif is_final(error):
            self._hosts.failed(transfer.target, error)
        else:
            self.on_event(Again(transfer.target, error.message))

    # A file of which all ranges came

    def _put_together(self, name: str, piece: Piece) -> None:
        party = self._hosts.party(name)

        def work() -> Told:
            try:
                whole = put_together(party, piece, self.freight)
            except VllmdeployError as error:
                return partial(self._not_put_together, name, error)
            return partial(self._was_put_together, name, piece, whole)

        self._news.beside(f"put {piece.called} together on {name}", work)

    def _was_put_together(self, name: str, piece: Piece, whole: bool) -> None:
        if whole:
            self._swarm.put_together(name, piece)
            self._hosts.served(name)
            return
        self._doubted.add((name, piece.number))
        self._swarm.fell_apart(name, piece)
        self.on_event(Again(name, f"{piece.called} is not what the manifest says"))

    def _not_put_together(self, name: str, error: VllmdeployError) -> None:
        if isinstance(error, HostError):
            self._hosts.lost(name, error)
        else:
            self._hosts.failed(name, error)
