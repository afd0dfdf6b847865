"""What of a plan mends a fleet without anybody being asked, and when it is tried again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.plan import Plan, Step

# Somebody decided these: a newer config.env, another role, a later program. They are not damage.
_DECIDED = ("settings changed", "differs from the head's", "the Ray token changed")
_BACK_OFF_S = (30.0, 60.0, 120.0, 300.0, 600.0)


def decided_by_somebody(plan: Plan) -> tuple[str, ...]:
    """Hosts on which the plan would undo what another operator wanted, or a person must confirm."""
    hosts = (step.host for step in plan if step.cause in _DECIDED or _moves(step))
    return tuple(dict.fromkeys(hosts))


def _moves(step: Step) -> bool:
    return step.cause.endswith((" is a ray-head now", " is a ray-worker now"))


def without(plan: Plan, hosts: Collection[str]) -> Plan:
    """The plan without what is done on these hosts, and without what needs that."""
    left: list[Step] = []
    gone: set[str] = set()
    for step in plan:
        if step.host in hosts or gone.intersection(step.needs):
            gone.add(step.key)
        else:
            left.append(step)
    return Plan(tuple(left), plan.notes)


def without_retries(plan: Plan, resting: Collection[str]) -> Plan:
    """The plan without steps, by key, that are to be tried again later."""
    return Plan(tuple(step for step in plan if step.key not in resting), plan.notes)


@dataclass(slots=True)
class Patience:
    """Hosts, or single steps, whose mending failed are left alone for a while, longer each time."""

    _failures: dict[str, int] = field(default_factory=dict[str, int])
    _until: dict[str, float] = field(default_factory=dict[str, float])

    def resting(self, now: float) -> Mapping[str, float]:
        """Seconds that each of them still has."""
        return {host: end - now for host, end in self._until.items() if end > now}

    def learn(self, now: float, *, worked: Collection[str], failed: Collection[str]) -> None:
        """`worked`: hosts on which all went well, or nothing was to be done."""
        for host in set(worked) - set(failed):
            self._failures.pop(host, None)
            self._until.pop(host, None)
        for host in failed:
            count = self._failures.get(host, 0)
            self._failures[host] = count + 1
            self._until[host] = now + _BACK_OFF_S[min(count, len(_BACK_OFF_S) - 1)]
