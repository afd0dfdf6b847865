"""Look at the fleet's lock, and remove it when its holder is gone."""

from __future__ import annotations

from dataclasses import dataclass

from vllmdeploy.core.command import check
from vllmdeploy.effects import lock as holding
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.tools import lock
from vllmdeploy.workflows.cluster import head_access
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True)
class FoundLock:
    held: bool
    gone: bool
    text: str
    nonce: str = ""


def look(session: Session) -> FoundLock:
    head = session.fleet.head.name
    way = head_access(session)
    state = ask_one(session.shells[head], lock.state(way.layout.lock), way)
    if not state.held:
        return FoundLock(held=False, gone=False, text=f"{head}: not locked")
    gone, why = holding.evidence(state)
    verdict = "its holder is gone" if gone else "its holder may be alive"
    who = str(state.holder) if state.holder else "somebody whose record is not readable"
    return FoundLock(
        held=True,
        gone=gone,
        nonce=state.holder.nonce if state.holder else "",
        text=f"{head}: locked by {who}, since {state.age_s} s; {verdict}: {why}",
    )


def remove(session: Session, found: FoundLock) -> None:
    """The lock that was looked at: one that another run took meanwhile stays."""
    head = session.fleet.head.name
    way = head_access(session)
    path = way.layout.lock
    command = way.of(lock.release(path, found.nonce) if found.nonce else lock.break_(path))
    check(head, command, session.shells[head].run(command), doing="removing the lock")
