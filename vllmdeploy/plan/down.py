"""The steps that take a fleet down again and leave nothing but its state."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.core.command import Command, script
from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.supervise import Supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import files, sync_keys

_FORGET = """
cd "$1" 2>/dev/null || exit 0
rm -rf services instances secrets logs run pkg cache || exit
cd / && rmdir "$1" "${1%/*}" 2>/dev/null
exit 0
"""


def plan_down(
    wanted: Wanted,
    found: Sequence[FoundHost],
    supervisor: Supervisor,
    *,
    forget: bool = False,
) -> Plan:
    """Stop and remove what is ours on every host, workers first; the state folder stays, with its
    specs and secrets, unless all is to be forgotten."""
    draft = Draft()
    gone: list[str] = []
    for host in sorted(found, key=lambda one: one.host.head):
        gone += _taking_down(draft, wanted, host, supervisor, tuple(gone), forget=forget)
    return draft.finished()


def _taking_down(
    draft: Draft,
    wanted: Wanted,
    found: FoundHost,
    supervisor: Supervisor,
    before: tuple[str, ...],
    *,
    forget: bool,
) -> list[str]:
    layout = found.access.layout
    # The head goes last: it is what the others hold on to while they end their ranks.
    needs = before if found.host.head else ()
    keys: list[str] = []

    def add(verb: str, subject: str, command: Command, *after: str) -> str:
        step = Step(
            host=found.host.name,
            verb=verb,
            subject=subject,
            cause="down",
            action=Run(found.access.of(command)),
            needs=after,
            destructive=True,
        )
        return draft.add(step)

    for node in found.ours(wanted.cluster):
        last: tuple[str, ...] = needs
        verbs = ("stop", "remove")
        for verb, command in zip(verbs, supervisor.remove(node, layout), strict=False):
            last = (add(verb, node.name, command, *last),)
        keys += last
    leftovers = (layout.runs, layout.packages, found.access.probes)
    if found.sync:
        withdrawn = add("withdraw", "sync key", sync_keys.withdraw(wanted.cluster))
        gone = files.remove(layout.sync, layout.sync_secrets, layout.connections)
        keys.append(add("remove", "sync files", gone, withdrawn))
    if forget:
        keys.append(add("forget", "specs, secrets and logs", _forget(layout.root), *keys))
    elif found.ours(wanted.cluster) or found.packages:
        keys.append(add("remove", "package and run files", files.remove(*leftovers), *keys))
    return keys


def _forget(root: str) -> Command:
    """All but the lock, which is still held while this runs, and the record of what was done; a
    host that has neither keeps no empty folders."""
    return script(_FORGET, root, root=True)
