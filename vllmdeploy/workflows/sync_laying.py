"""The key between hosts, laid before the first distribution; the head's copy is the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllmdeploy.core.plan import Plan
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.execute import OnEvent, Outcome, Stop, execute
from vllmdeploy.errors import CommandFailed
from vllmdeploy.plan.transfer_keys import Member, plan_keys
from vllmdeploy.tools import sync_keys
from vllmdeploy.tools.sync_keys import KeyPair
from vllmdeploy.workflows.cluster import head_access
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.sync_look import Seen

NOT_YET = KeyPair(b"", "ssh-ed25519 (made when it runs)")


def pair_held(session: Session) -> KeyPair:
    """For a plan that is only shown: nothing is made by looking."""
    shell, way = session.shells[session.lead.name], head_access(session)
    return ask_one(shell, sync_keys.held(way.layout), way) or NOT_YET


def keys_plan(session: Session, members: Sequence[Member], pair: KeyPair) -> Plan:
    root = session.settings.model_path.rstrip("/")
    return plan_keys(members, session.wanted.cluster, root, pair)


def laid(
    session: Session,
    seen: Mapping[str, Seen],
    names: Sequence[str],
    on_step: OnEvent,
    stop: Stop,
) -> Mapping[str, Seen]:
    """Hosts on which the keys could not be laid get theirs through this machine."""
    if not any(one.member.direct for one in seen.values()):
        return seen
    lead = session.lead.name
    way = seen[lead].member.access if lead in seen else head_access(session)
    command = way.of(sync_keys.make(way.layout, session.wanted.cluster))
    result = session.shells[lead].run(command)
    pair = sync_keys.parse_make(result) if result.ok else None
    if pair is None:
        raise CommandFailed(
            lead,
            "ssh-keygen",
            result.status,
            result.stderr,
            doing="making the sync key",
            hint="--through-control needs no key",
        )
    planned = keys_plan(session, [seen[name].member for name in names], pair)
    outcomes = execute(planned, session.shells, on_step, stop=stop)
    without = {one.step.host for one in outcomes if one.outcome is not Outcome.DONE}
    return {
        name: replace(one, member=replace(one.member, road=None)) if name in without else one
        for name, one in seen.items()
    }
