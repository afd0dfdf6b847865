"""`up --watch`: look, plan, carry out what mends, again and again, until somebody says stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from vllmdeploy.config.settings import Loaded
from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.core.plan import Plan
from vllmdeploy.effects.execute import OnEvent, Outcome
from vllmdeploy.errors import HostError, Locked, VllmdeployError
from vllmdeploy.plan.mend import Patience, decided_by_somebody, without, without_retries
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service_steps import RETRY
from vllmdeploy.plan.spares import Lineup, lineup
from vllmdeploy.workflows import cluster, service_up
from vllmdeploy.workflows.session import Session

Sessions = Callable[[Loaded], AbstractContextManager[Session]]
Say = Callable[[str], None]


@dataclass(slots=True)
class Tally:
    """What a watch did, for its last words."""

    rounds: int = 0
    mended: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"looked {self.rounds} times: {self.mended} steps done, {self.failed} failed"


@dataclass(slots=True, kw_only=True)
class Watch:
    """Each round connects anew, so that a host that died is met again when it is back, and holds
    the fleet's lock only for as long as it has something to do or to look at."""

    loaded: Loaded
    sessions: Sessions
    say: Say
    on_event: OnEvent
    every_s: float
    spare_after_s: float
    clock: Callable[[], float] = time.monotonic
    tally: Tally = field(default_factory=Tally)
    patience: Patience = field(default_factory=Patience)
    _said: dict[str, str] = field(default_factory=dict[str, str])
    _lost_at: dict[str, float] = field(default_factory=dict[str, float])

    def forever(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.round()
            stop.wait(self.every_s)

    def round(self) -> None:
        """What goes wrong is said, and met again by the next round."""
        self.tally.rounds += 1
        try:
            with self.sessions(self.loaded) as session:
                self._mend(session)
        except Locked as error:
            self._tell("lock", f"left alone: {error.message}")
        except VllmdeployError as error:
            self._tell("round", error.message)
        else:
            self._quiet("lock", "round")

    def _mend(self, session: Session) -> None:
        with cluster.locked(session, "up --watch") as stop:
            answers = session.look(for_plan=True)
            for answer in answers.values():
                if isinstance(answer, VllmdeployError) and not isinstance(answer, HostError):
                    raise answer
            there = {name: one for name, one in answers.items() if isinstance(one, FoundHost)}
            reachable = self._reachable(session, there)
            if reachable is None:
                return
            found = {
                host.name: there[host.name]
                for host in reachable.fleet.everyone
                if host.name in there
            }
            plan = self._chosen(service_up.decide_up(reachable, found, patient=False))
            if not plan.steps:
                if not self.patience.resting(self.clock()):
                    self.patience.learn(self.clock(), worked=tuple(found), failed=())
                return
            for step in plan:
                self.say(f"{step.key} ({step.cause})")
            for note in plan.notes:
                self._tell(f"note: {note}", f"note: {note}")
            applied = cluster.apply(reachable, plan, "up --watch", self.on_event, stop)
            self._learn(found, applied)

    def _reachable(self, session: Session, there: Mapping[str, FoundHost]) -> Session | None:
        """The fleet without hosts that do not answer and that nobody stands in for, or not yet;
        none where all groups have lost their head."""
        left: set[str] = set()
        for name in session.fleet.groups:
            hosts = session.fleet.group(name)
            if hosts[0].name in there:
                left |= self._left_out(lineup(session.wanted.cluster, hosts, there))
            else:
                left.update(host.name for host in hosts)
        self._say_who_is_lost(session, there)
        kept = tuple(host for host in session.fleet.hosts if host.name not in left)
        return _of(session, kept) if kept else None

    def _left_out(self, lined: Lineup) -> set[str]:
        """Who stays dead for long enough is not left out: a spare takes its place."""
        now = self.clock()
        early = {
            host
            for host in (lined.standing_in[spare] for spare in lined.fresh)
            if now - self._lost_at.setdefault(host, now) < self.spare_after_s
        }
        return early | set(lined.lost)

    def _say_who_is_lost(self, session: Session, there: Mapping[str, FoundHost]) -> None:
        for host in session.fleet.everyone:
            if host.name in there:
                self._lost_at.pop(host.name, None)
                self._quiet(f"host {host.name}")
            else:
                self._tell(f"host {host.name}", session.failures[host.name].message)

    def _chosen(self, plan: Plan) -> Plan:
        """Without what somebody decided, and without hosts whose mending has just failed."""
        others = decided_by_somebody(plan)
        for host in others:
            self._tell(
                f"decided {host}",
                f"{host}: made with other settings; `vllmdeploy up` asks about it",
            )
        resting = self.patience.resting(self.clock())
        return without_retries(without(plan, {*others, *resting}), resting)

    def _learn(self, found: Mapping[str, FoundHost], applied: cluster.Applied) -> None:
        failed = {one.step.host for one in applied.failed}
        touched = {one.step.host for one in applied.outcomes}
        # What was given up may be given up again: longer and longer pauses between two tries.
        retried = {one.step.key for one in applied.outcomes if one.step.verb == RETRY}
        now = self.clock()
        self.patience.learn(now, worked=touched - failed, failed=failed | retried)
        done = sum(one.outcome is Outcome.DONE for one in applied.outcomes)
        self.tally.mended += done
        self.tally.failed += len(applied.failed)
        for one in applied.failed:
            if one.error:
                self.say(one.error.message)
        resting = self.patience.resting(self.clock())
        for host in sorted(failed):
            self.say(f"{host}: tried again in {resting[host]:.0f} s")

    def _tell(self, about: str, words: str) -> None:
        """Once, until it changes."""
        if self._said.get(about) != words:
            self._said[about] = words
            self.say(words)

    def _quiet(self, *about: str) -> None:
        for one in about:
            if self._said.pop(one, None):
                self.say(f"{one}: well again")


def _of(session: Session, hosts: tuple[Host, ...]) -> Session:
    fleet = Fleet(hosts, session.fleet.gateways)
    loaded = replace(session.loaded, fleet=fleet)
    names = {host.name for host in fleet.everyone}
    shells = {name: shell for name, shell in session.shells.items() if name in names}
    failures = {name: error for name, error in session.failures.items() if name in names}
    return Session(loaded, shells, failures)
