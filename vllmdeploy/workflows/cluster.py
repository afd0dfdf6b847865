"""`plan`, `up`, `down`: look at all hosts, decide, show, carry out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from vllmdeploy.accelerators import registry
from vllmdeploy.core.command import check
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.effects import lock
from vllmdeploy.effects.ask import ask_access
from vllmdeploy.effects.audit import Tally, record
from vllmdeploy.effects.execute import OnEvent, Outcome, StepOutcome, Stop, execute
from vllmdeploy.errors import PreflightRefused, VllmdeployError
from vllmdeploy.plan.down import plan_down
from vllmdeploy.plan.group import GroupPlan, decide_group
from vllmdeploy.plan.image_pull import plan_pulls
from vllmdeploy.plan.node_steps import Payload
from vllmdeploy.plan.observed import FoundHost, lone_worker
from vllmdeploy.plan.service_gateways import fronts_alone
from vllmdeploy.plan.spares import Lineup, lineup, retire
from vllmdeploy.plan.up import plan_up
from vllmdeploy.tools import access, files
from vllmdeploy.workflows.session import Session

T = TypeVar("T")

_TOKEN_BYTES = 32
# One host by the tag, then the others by what that was.
_PULLS = 2


def decide_up(session: Session, found: Mapping[str, FoundHost]) -> Plan:
    """The plan that brings the fleet up from what was found on it."""
    lined = lineups(session, found)
    _refuse_lone_workers(session, found)
    groups = decide_groups(session, found)
    payload = Payload(package=session.package[0], token=_token(session, found))
    plan = plan_up(session.wanted, groups, payload, session.supervisor)
    draft = Draft(list(plan.steps), list(plan.notes))
    for one in lined.values():
        retire(draft, session.wanted.cluster, one, found, session.supervisor)
        for spare in one.fresh:
            draft.note(
                f"{spare} takes the place of {one.standing_in[spare]}, which does not answer"
            )
    return draft.finished()


def _refuse_lone_workers(session: Session, found: Mapping[str, FoundHost]) -> None:
    for name, host in found.items():
        node = lone_worker(session.fleet, host, session.wanted.cluster)
        if node is not None:
            raise PreflightRefused(
                [f"{name}: {node.name} is here, a worker of a head on another machine"],
                hint="`vllmdeploy worker HEAD_IP` brings it up to date; `vllmdeploy down`, and then"
                " this machine can be a head",
            )


Deciding = Callable[[Session, Mapping[str, FoundHost]], Plan]


def decide_with_images(
    session: Session,
    found: Mapping[str, FoundHost],
    on_event: OnEvent,
    stop: Stop,
    *,
    decide: Deciding = decide_up,
) -> Plan:
    """Pull what is missing and decide anew: only then is it known what the images hold."""
    for _ in range(_PULLS):
        fronts = [found[host.name] for host in session.fleet.fronts if host.name in found]
        groups = decide_groups(session, found)
        pulls = plan_pulls(session.wanted, {**groups, "": fronts_alone(session.wanted, fronts)})
        if not pulls.steps:
            break
        for outcome in execute(pulls, session.shells, on_event, stop=stop):
            if outcome.error:
                raise outcome.error
        found = session.look_at_all()
    return decide(session, found)


def decide_groups(session: Session, found: Mapping[str, FoundHost]) -> dict[str, GroupPlan]:
    return {
        name: decide_group(
            session.wanted,
            name,
            lined.active,
            lambda host: registry.named(host.cards.vendor),
            standing_in=lined.standing_in,
        )
        for name, lined in lineups(session, found).items()
    }


def lineups(session: Session, found: Mapping[str, FoundHost]) -> dict[str, Lineup]:
    """Which hosts make up each group; one that does not answer and is not replaced ends it all."""
    lined = {
        name: lineup(session.wanted.cluster, session.fleet.group(name), found)
        for name in session.fleet.groups
    }
    lost = {host: why for one in lined.values() for host, why in one.lost.items()}
    for host, why in lost.items():
        error = session.failures[host]
        raise type(error)(host, error.message.removeprefix(f"{host}: "), hint=error.hint or why)
    return lined


def _token(session: Session, found: Mapping[str, FoundHost]) -> str:
    """The head's copy is the truth; where it has none, one is made."""
    head = found[session.lead.name]
    if "ray/ray_token" not in head.secrets:
        return secrets.token_hex(_TOKEN_BYTES)
    command = head.access.of(files.read(head.access.layout.ray_token))
    result = session.shells[head.host.name].run(command)
    return check(head.host.name, command, result, doing="reading the Ray token").stdout.strip()


def decide_down(session: Session, found: Mapping[str, FoundHost], *, forget: bool) -> Plan:
    return plan_down(session.wanted, list(found.values()), session.supervisor, forget=forget)


@contextmanager
def locked(session: Session, what: str) -> Generator[Stop]:
    """The fleet's lock on the head, for the whole of looking, deciding and doing."""
    head = session.lead.name
    if head in session.failures:
        raise session.failures[head]
    shell = session.shells[head]
    way = head_access(session)
    stop = Stop.new()
    with lock.held(shell, way, what, stop):
        yield stop


def head_access(session: Session) -> access.Access:
    shell = session.shells[session.lead.name]
    return ask_access(shell, session.wanted.cluster, session.sudo)


@dataclass(frozen=True, slots=True)
class Applied:
    outcomes: tuple[StepOutcome, ...]
    unrecorded: VllmdeployError | None = None
    """Why the head's audit log has no line about it."""

    @property
    def failed(self) -> tuple[StepOutcome, ...]:
        return tuple(one for one in self.outcomes if one.outcome is Outcome.FAILED)

    @property
    def skipped(self) -> tuple[StepOutcome, ...]:
        return tuple(one for one in self.outcomes if one.outcome is Outcome.SKIPPED)


def apply(session: Session, plan: Plan, what: str, on_event: OnEvent, stop: Stop) -> Applied:
    """Carry the plan out; one line in the head's audit log says what came of it."""
    outcomes, unrecorded = recorded(
        session,
        what,
        lambda: execute(plan, session.shells, on_event, stop=stop),
        tally=Tally.of_steps,
    )
    return Applied(outcomes, unrecorded)


def recorded(
    session: Session, what: str, work: Callable[[], T], *, tally: Callable[[T], Tally]
) -> tuple[T, VllmdeployError | None]:
    """What came of the work, and why the head's audit log has no line about it, if so."""
    try:
        result = work()
    except BaseException:
        # What ended it is what has to be told, even if the head is out of reach by now.
        with suppress(VllmdeployError):
            _record(session, what, None)
        raise
    try:
        _record(session, what, tally(result))
    except VllmdeployError as error:
        return result, error
    return result, None


def _record(session: Session, what: str, tally: Tally | None) -> None:
    record(session.shells[session.lead.name], head_access(session), what, tally)
