"""The steps after which the hosts of a cluster read each other's models, and how they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllmdeploy.core.command import Command
from vllmdeploy.core.host import Host
from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.tools import files, sync_keys
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.rsync import Road, usable
from vllmdeploy.tools.sync_keys import KeyPair, Peering


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A host that takes part: how it is reached by others, and what of ours it has by now.

    `road` is None where others cannot reach it: what it gets then goes through this machine.
    """

    host: Host
    access: Access
    peering: Peering
    road: Road | None = None
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    serves: Mapping[str, str] = field(default_factory=dict[str, str])
    authorized: str = ""

    @property
    def direct(self) -> bool:
        """Whether it can read from others, and they from it, without this machine's help."""
        able = usable(self.peering.rsync) and self.peering.ssh
        return self.road is not None and able and bool(self.peering.host_keys)


def plan_keys(members: Sequence[Member], cluster: str, model_path: str, pair: KeyPair) -> Plan:
    """What is missing or differs, host by host; nothing where all is as it should be."""
    draft = Draft()
    peers = [member for member in members if member.direct]
    keys = {peer.road.ip: peer.peering.host_keys for peer in peers if peer.road}
    known = sync_keys.known_hosts(keys)
    for peer in peers:
        wanted = {sync_keys.PRIVATE: pair.private, sync_keys.KNOWN_HOSTS: known}
        subjects = {sync_keys.PRIVATE: "sync key", sync_keys.KNOWN_HOSTS: "host keys for sync"}
        for name, content in wanted.items():
            path = f"{peer.access.layout.sync_secrets}/{name}"
            write = files.write(path, content, mode="0600")
            _step(draft, peer, "install", subjects[name], write, peer.secrets.get(name), content)
        serve = sync_keys.serve_script(peer.access.layout)
        held = peer.serves.get(sync_keys.SERVE)
        _step(draft, peer, "install", "sync server", serve, held, serve.stdin or b"")
        line = sync_keys.authorized_line(peer.access.layout, cluster, model_path, pair.public)
        authorize = sync_keys.authorize(cluster, line)
        _step(draft, peer, "authorize", "sync key", authorize, peer.authorized, line.encode())
    return draft.finished()


def _step(
    draft: Draft,
    member: Member,
    verb: str,
    subject: str,
    command: Command,
    found: str | None,
    wanted: bytes,
) -> None:
    if found == files.digest(wanted):
        return
    draft.add(
        Step(
            host=member.host.name,
            verb=verb,
            subject=subject,
            cause="changed" if found else "not there",
            action=Run(member.access.of(command)),
        )
    )
