"""Carry out a distribution: one thread for what runs, one place where all is told and decided."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.transfer_events import (
    Again,
    HostDone,
    HostFailed,
    Joined,
    OnSyncEvent,
    Rate,
    progress,
)
from vllmdeploy.effects.transfer_pull import Arrival, Freight, Party, fetch, is_final
from vllmdeploy.errors import EXIT_COMMAND, HostError, VllmdeployError
from vllmdeploy.plan.transfer import Piece, Swarm, Transfer

_TOLD_EVERY_S = 1.0
# A host that went away is asked again this often, and waited for so long after all others.
_REVIVED_EVERY_S = 5.0
_WAITED_S = 30.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a host has when it joins, and what it does not need. `whole`: the model is there and
    READY."""

    has: frozenset[int] = frozenset()
    spared: frozenset[int] = frozenset()
    there: int = 0
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done on a host before its first piece and after its last."""

    prepare: Callable[[Party], Prepared]
    finish: Callable[[Party], None]


class Unobtainable(VllmdeployError):
    """Nobody who is left has what a host misses."""

    exit_code = EXIT_COMMAND


@dataclass(slots=True)
class _Host:
    party: Party
    joined: bool = False
    finishing: bool = False
    done: bool = False
    error: VllmdeployError | None = None
    lost_at: float | None = None
    last_error: VllmdeployError | None = None


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
    _sources: dict[str, Party] = field(default_factory=dict[str, Party])
    _hosts: dict[str, _Host] = field(default_factory=dict[str, _Host])
    _over: dict[int, int] = field(default_factory=dict[int, int])
    _begun: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    _doubted: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    _news: queue.SimpleQueue[Callable[[], None]] = field(
        default_factory=queue.SimpleQueue[Callable[[], None]]
    )
    _began: float = 0.0
    _told: float = 0.0
    _rate: Rate = field(default_factory=Rate)

    def __post_init__(self) -> None:
        self._swarm = Swarm(self.pieces)

    def run(
        self, sources: Sequence[Party], targets: Sequence[Party]
    ) -> Mapping[str, VllmdeployError]:
        """The hosts that do not have it in the end, and why."""
        self._began = self.clock()
        everything = range(len(self.pieces))
        for party in sources:
            self._sources[party.name] = party
            self._swarm.join(party.name, has=everything, receives=False, direct=party.member.direct)
        for party in targets:
            self._hosts[party.name] = _Host(party)
            self._prepare(party)
        try:
            while self._open():
                self._turn()
        except BaseException:
            self.stop.event.set()
            raise
        self._tell(always=True)
        return {name: host.error for name, host in self._hosts.items() if host.error is not None}

    # Turns

    def _open(self) -> bool:
        if self.stop.event.is_set():
            return False
        now = self.clock()
        return any(
            not host.done
            and (
                host.error is None or (host.lost_at is not None and now < host.lost_at + _WAITED_S)
            )
            for host in self._hosts.values()
        )

    def _turn(self) -> None:
        now = self.clock()
        for transfer in self._swarm.next(now):
            self._begin(transfer)
        self._give_up()
        wake = self._swarm.wake_at(now)
        wait = min(_TOLD_EVERY_S, max(0.01, wake - now) if wake is not None else _TOLD_EVERY_S)
        try:
            self._news.get(timeout=wait)()
            while True:
                self._news.get_nowait()()
        except queue.Empty:
            pass
        self._tell()

    def _background(self, name: str, work: Callable[[], Callable[[], None]]) -> None:
        """`work` runs beside; what it returns is done here, and a bug in it comes up here."""

        def run() -> None:
            try:
                news = work()
            except BaseException as bug:
                news = partial(_raise, bug)
            self._news.put(news)

        threading.Thread(target=run, daemon=True, name=f"sync {name}").start()

    def _tell(self, *, always: bool = False) -> None:
        now = self.clock()
        if not always and now < self._told + _TOLD_EVERY_S:
            return
        self._told = now
        there = {name: self._there(name) for name, host in self._hosts.items() if host.joined}
        for transfer in self._swarm.running:
            if transfer.target in there:
                there[transfer.target] += self._over.get(transfer.number, 0)
        total = self.freight.manifest.total
        rate = self._rate.at(now, sum(there.values()))
        self.on_event(progress(there, total, rate))

    def _there(self, name: str) -> int:
        lacking = sum(piece.size for piece in self._swarm.missing(name))
        return self.freight.manifest.total - lacking

    # A host's way

    def _prepare(self, party: Party, *, after_s: float = 0.0) -> None:
        def work() -> Callable[[], None]:
            if after_s:
                self.stop.event.wait(after_s)
            try:
                return partial(self._joined, party, self.work.prepare(party))
            except VllmdeployError as error:
                return partial(self._host_failed, party, error)

        self._background(f"prepare {party.name}", work)

    def _joined(self, party: Party, prepared: Prepared) -> None:
        host = self._hosts[party.name]
        host.joined, host.error, host.lost_at = True, None, None
        has = range(len(self.pieces)) if prepared.whole else prepared.has
        spared = prepared.spared
        self._swarm.join(party.name, has=has, spared=spared, direct=party.member.direct)
        if prepared.there:
            # What is there in part is looked through first when the rest comes.
            self._begun.update((party.name, piece.number) for piece in self.pieces)
        self.on_event(Joined(party.name, prepared.there))
        if prepared.whole:
            self._finished(party)
        else:
            self._finish_if_complete(party)

    def _host_failed(self, party: Party, error: VllmdeployError) -> None:
        host = self._hosts[party.name]
        if host.error is None:
            self.on_event(HostFailed(party.name, error))
        host.error = error
        if party.name in self._swarm.peers:
            self._swarm.lost(party.name)
        if isinstance(error, HostError):
            host.lost_at = host.lost_at if host.lost_at is not None else self.clock()
            self._prepare(party, after_s=_REVIVED_EVERY_S)

    def _finish_if_complete(self, party: Party) -> None:
        host = self._hosts[party.name]
        if host.finishing or host.done or not self._swarm.complete(party.name):
            return
        host.finishing = True

        def work() -> Callable[[], None]:
            try:
                self.work.finish(party)
            except VllmdeployError as error:
                return partial(self._not_finished, party, error)
            return partial(self._finished, party)

        self._background(f"finish {party.name}", work)

    def _not_finished(self, party: Party, error: VllmdeployError) -> None:
        self._hosts[party.name].finishing = False
        self._host_failed(party, error)

    def _finished(self, party: Party) -> None:
        host = self._hosts[party.name]
        host.done, host.error = True, None
        self.on_event(HostDone(party.name, self.clock() - self._began))

    def _give_up(self) -> None:
        waiting = any(not host.joined and host.error is None for host in self._hosts.values())
        for name in self._swarm.hopeless:
            host = self._hosts.get(name)
            if host is None or host.done or host.finishing or host.error or waiting:
                continue
            self._host_failed(host.party, host.last_error or self._unobtainable(name))

    def _unobtainable(self, name: str) -> VllmdeployError:
        missing = self._swarm.missing(name)
        first = missing[0].paths[0] if missing else "nothing"
        return Unobtainable(
            f"{name}: no host has {first} as the manifest says",
            hint=self.freight.mend
            or f"`vllmdeploy model verify {self.freight.place.name} --deep` finds what changed",
        )

    # A piece's way

    def _party(self, name: str) -> Party:
        return self._sources[name] if name in self._sources else self._hosts[name].party

    def _begin(self, transfer: Transfer) -> None:
        key = (transfer.target, transfer.piece.number)
        arrival = Arrival(
            on_bytes=lambda count: self._news.put(partial(self._heard, transfer, count)),
            on_moved=lambda: self._news.put(lambda: self._swarm.moved(transfer, self.clock())),
        )
        call = partial(
            fetch,
            transfer,
            self._party(transfer.source),
            self._party(transfer.target),
            self.freight,
            arrival,
            resumes=key in self._begun,
            checksum=key in self._doubted,
        )
        self._begun.add(key)

        def work() -> Callable[[], None]:
            try:
                return partial(self._came, transfer, arrival, call())
            except VllmdeployError as error:
                return partial(self._did_not_come, transfer, arrival, error)

        self._background(f"{transfer.source} to {transfer.target}", work)

    def _heard(self, transfer: Transfer, count: int) -> None:
        self._over[transfer.number] = count
        self._swarm.heard(transfer, self.clock())

    def _came(self, transfer: Transfer, arrival: Arrival, wrong: tuple[str, ...]) -> None:
        self._over.pop(transfer.number, None)
        self.wire += arrival.wire
        host = self._hosts[transfer.target]
        key = (transfer.target, transfer.piece.number)
        if not wrong:
            self._swarm.arrived(transfer, self.clock())
            host.last_error = None
            self._finish_if_complete(host.party)
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
        self._swarm.failed(transfer, self.clock())
        host = self._hosts[transfer.target]
        host.last_error = error
        if isinstance(error, HostError) and error.host in self._sources:
            self._swarm.lost(error.host)
        elif isinstance(error, HostError) and error.host in self._hosts:
            lost = self._hosts[error.host]
            if lost.error is None:
                self._host_failed(lost.party, error)
        elif is_final(error):
            self._host_failed(host.party, error)
        else:
            self.on_event(Again(transfer.target, error.message))


def _raise(bug: BaseException) -> None:
    raise bug
