"""The way of every host through a distribution: prepared, served, finished, lost, revived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.transfer_events import HostDone, HostFailed, Joined, OnSyncEvent
from vllmdeploy.effects.transfer_freight import Freight, Party
from vllmdeploy.effects.transfer_news import News, Told
from vllmdeploy.errors import EXIT_COMMAND, HostError, VllmdeployError
from vllmdeploy.plan.transfer import Swarm

# A host that went away is asked again this often, and waited for so long after all others.
_REVIVED_EVERY_S = 5.0
_WAITED_S = 30.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a host has when it joins, and what it does not need. `files`: cut into ranges, yet to
    come as a whole. `whole`: the model is there and READY."""

    has: frozenset[int] = frozenset()
    files: frozenset[int] = frozenset()
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
    """`partly`: something of it was there before, which has to be looked through."""

    party: Party
    joined: bool = False
    partly: bool = False
    finishing: bool = False
    done: bool = False
    error: VllmdeployError | None = None
    lost_at: float | None = None
    last_error: VllmdeployError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Those that are to have the model; all calls come from the thread that heeds the news."""

    swarm: Swarm
    freight: Freight
    work: Work
    news: News
    on_event: OnSyncEvent
    stop: Stop
    clock: Callable[[], float]
    began: float
    _hosts: dict[str, _Host] = field(default_factory=dict[str, _Host])

    def add(self, party: Party) -> None:
        self._hosts[party.name] = _Host(party)
        self._prepare(party)

    def __contains__(self, name: str) -> bool:
        return name in self._hosts

    def party(self, name: str) -> Party:
        return self._hosts[name].party

    @property
    def joined(self) -> Sequence[str]:
        return [name for name, host in self._hosts.items() if host.joined]

    @property
    def preparing(self) -> bool:
        return any(not host.joined and host.error is None for host in self._hosts.values())

    @property
    def errors(self) -> Mapping[str, VllmdeployError]:
        return {name: host.error for name, host in self._hosts.items() if host.error is not None}

    def partly(self, name: str) -> bool:
        return self._hosts[name].partly

    def open(self, now: float) -> bool:
        """Whether any host may still come to have the model."""
        return any(
            not host.done
            and (
                host.error is None or (host.lost_at is not None and now < host.lost_at + _WAITED_S)
            )
            for host in self._hosts.values()
        )

    # What happened

    def served(self, name: str) -> None:
        """A piece came, and is what it should be."""
        host = self._hosts[name]
        host.last_error = None
        self._finish_if_complete(host)

    def troubled(self, name: str, error: VllmdeployError) -> None:
        """Told only where nothing better comes."""
        self._hosts[name].last_error = error

    def lost(self, name: str, error: VllmdeployError) -> None:
        if self._hosts[name].error is None:
            self.failed(name, error)

    def failed(self, name: str, error: VllmdeployError) -> None:
        host = self._hosts[name]
        if host.error is None:
            self.on_event(HostFailed(name, error))
        host.error = error
        if name in self.swarm.peers:
            self.swarm.lost(name)
        if isinstance(error, HostError):
            host.lost_at = host.lost_at if host.lost_at is not None else self.clock()
            self._prepare(host.party, after_s=_REVIVED_EVERY_S)

    def give_up(self) -> None:
        """On hosts that miss what nobody has any more, once no other may still bring it."""
        waiting = self.preparing
        for name in self.swarm.hopeless:
            host = self._hosts.get(name)
            if host is None or host.done or host.finishing or host.error or waiting:
                continue
            self.failed(name, host.last_error or self._unobtainable(name))

    def _unobtainable(self, name: str) -> VllmdeployError:
        missing = self.swarm.missing(name)
        first = missing[0].paths[0] if missing else "nothing"
        return Unobtainable(
            f"{name}: no host has {first} as the manifest says",
            hint=self.freight.mend
            or f"`vllmdeploy model verify {self.freight.place.name} --deep` finds what changed",
        )

    # Before its first piece, and after its last

    def _prepare(self, party: Party, *, after_s: float = 0.0) -> None:
        def work() -> Told:
            if after_s:
                self.stop.event.wait(after_s)
            try:
                return partial(self._joined, party.name, self.work.prepare(party))
            except VllmdeployError as error:
                return partial(self.failed, party.name, error)

        self.news.beside(f"prepare {party.name}", work)

    def _joined(self, name: str, prepared: Prepared) -> None:
        host = self._hosts[name]
        host.joined, host.error, host.lost_at = True, None, None
        host.partly = host.partly or prepared.there > 0
        has = range(len(self.swarm.pieces)) if prepared.whole else prepared.has
        direct = host.party.member.direct
        self.swarm.join(name, has=has, spared=prepared.spared, whole=prepared.files, direct=direct)
        self.on_event(Joined(name, prepared.there))
        if prepared.whole:
            self._finished(name)
        else:
            self._finish_if_complete(host)

    def _finish_if_complete(self, host: _Host) -> None:
        name = host.party.name
        if host.finishing or host.done or not self.swarm.complete(name):
            return
        host.finishing = True

        def work() -> Told:
            try:
                self.work.finish(host.party)
            except VllmdeployError as error:
                return partial(self._not_finished, name, error)
            return partial(self._finished, name)

        self.news.beside(f"finish {name}", work)

    def _not_finished(self, name: str, error: VllmdeployError) -> None:
        self._hosts[name].finishing = False
        self.failed(name, error)

    def _finished(self, name: str) -> None:
        host = self._hosts[name]
        host.done, host.error = True, None
        self.on_event(HostDone(name, self.clock() - self.began))
