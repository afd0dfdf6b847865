"""The numbers of one worker, and those of all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.keys import Usage, added
from vllmdeploy.gateway.meters import Meters
from vllmdeploy.routing.states import LEAVING, State


@dataclass(slots=True)
class Seen:
    """One instance, as workers see it. `taking`: how many of them may send it something new,
    `aside`: how many send it nothing at the moment; the times are sums over `timed` workers."""

    inflight: int = 0
    requests: int = 0
    taking: int = 0
    aside: int = 0
    first_byte_s: float = 0.0
    latency_s: float = 0.0
    timed: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])

    def add(self, other: Seen) -> None:
        self.inflight += other.inflight
        self.requests += other.requests
        self.taking += other.taking
        self.aside += other.aside
        self.first_byte_s += other.first_byte_s
        self.latency_s += other.latency_s
        self.timed += other.timed
        self.failures.update(other.failures)


@dataclass(slots=True)
class Report:
    meters: Meters = field(default_factory=Meters)
    retries: Counter[str] = field(default_factory=Counter[str])
    used: dict[str, Usage] = field(default_factory=dict[str, Usage])
    instances: dict[str, Seen] = field(default_factory=dict[str, Seen])
    waiting: Counter[str] = field(default_factory=Counter[str])

    def add(self, other: Report) -> None:
        self.meters.add(other.meters)
        self.retries.update(other.retries)
        for name, usage in other.used.items():
            self.used[name] = added(self.used.get(name, Usage()), usage)
        for name, seen in other.instances.items():
            self.instances.setdefault(name, Seen()).add(seen)
        self.waiting.update(other.waiting)


def report(gateway: Gateway) -> Report:
    fleet = gateway.fleet
    return Report(
        gateway.meters,
        Counter(gateway.dispatcher.retries),
        gateway.ledger.used,
        {one.id: _seen(one) for one in fleet.instances.values()},
        Counter({name: group.waiting for name, group in fleet.groups.items()}),
    )


def total(reports: Iterable[Report]) -> Report:
    found = Report()
    for one in reports:
        found.add(one)
    return found


def what_stays(ended: Report) -> Report:
    """Of a worker that has ended, what counts for ever: a counter must not go back."""
    counted = {name: Seen(requests=s.requests, failures=s.failures)
               for name, s in ended.instances.items()}  # fmt: skip
    return Report(ended.meters, ended.retries, ended.used, counted)


def show(gateway: Gateway, all_: Report) -> None:
    """In a gateway that serves no requests itself, the numbers of those who do."""
    gateway.meters = all_.meters
    gateway.dispatcher.retries = dict(all_.retries)
    gateway.ledger.used = all_.used
    for instance in gateway.fleet.instances.values():
        seen = all_.instances.get(instance.id, Seen())
        load = instance.load
        leaving = instance.health.state is State.DRAINING
        # Who may still send it something has not yet heard that it drains: so it is not drained.
        load.inflight = seen.inflight + (seen.taking if leaving else 0)
        load.first_byte_s = seen.first_byte_s / max(1, seen.timed)
        load.latency_s = seen.latency_s / max(1, seen.timed)
        instance.requests = seen.requests
        instance.failures = dict(seen.failures)
        instance.aside = seen.aside
    for name, group in gateway.fleet.groups.items():
        group.elsewhere = all_.waiting[name]


def _seen(instance: Instance) -> Seen:
    health, load = instance.health, instance.load
    return Seen(
        load.inflight,
        instance.requests,
        taking=int(health.state not in LEAVING),
        aside=int(not (health.serving and instance.models)),
        first_byte_s=load.first_byte_s,
        latency_s=load.latency_s,
        timed=int(load.latency_s > 0),
        failures=Counter(instance.failures),
    )
