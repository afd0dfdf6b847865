"""The fleet's own API keys: the head's copy is the truth, every gateway reads a copy of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllmdeploy.core.command import check
from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.effects.ask import ask_access
from vllmdeploy.effects.audit import Tally
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import UsageError, VllmdeployError
from vllmdeploy.plan.service_gateway_node import ADMIN, KEYS, keys_folder
from vllmdeploy.tools import files
from vllmdeploy.tools.access import Access
from vllmdeploy.workflows.cluster import head_access, locked, recorded
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where the changed keys are now, and where they could not be brought. `unrecorded`: why the
    head's audit log has no line about it."""

    hosts: tuple[str, ...]
    failed: Mapping[str, VllmdeployError]
    unrecorded: VllmdeployError | None = None

    def tally(self) -> Tally:
        return Tally.of_hosts(done=len(self.hosts), failed=self.failed.values())


def keepers(fleet: Fleet) -> tuple[Host, ...]:
    """The head and the hosts of the gateways, each once."""
    return tuple({host.name: host for host in (fleet.head, *fleet.offering)}.values())


def read(session: Session) -> str:
    """The head's copy."""
    if session.settings.api_auth == "none":
        raise UsageError("API_AUTH=none: the gateway asks nobody for a key")
    lead = session.lead.name
    if lead in session.failures:
        raise session.failures[lead]
    return _read(session, head_access(session))


def admin_key(session: Session) -> str:
    """The head's copy of the admin key, for whoever may read it there; empty where none is yet."""
    lead = session.lead.name
    if lead in session.failures:
        raise session.failures[lead]
    shell, way = session.shells[lead], head_access(session)
    path = f"{keys_folder(way.layout)}/{ADMIN}"
    if not _is_there(shell, way, path):
        return ""
    command = way.of(files.read(path))
    said = check(lead, command, shell.run(command), doing="reading the admin key")
    return said.stdout


def change(session: Session, what: str, changed: Callable[[str], str]) -> Spread:
    """The keys anew, on the head first and then beside every gateway; they notice by themselves.

    A host without a copy has no gateway: the next one there gets the keys as they are then.
    """
    with locked(session, what):
        new = changed(read(session)).encode()
        spread, unrecorded = recorded(
            session, what, lambda: _spread(session, new), tally=Spread.tally
        )
    return Spread(hosts=spread.hosts, failed=spread.failed, unrecorded=unrecorded)


def _spread(session: Session, content: bytes) -> Spread:
    lead, *others = keepers(session.fleet)
    _write(session, lead, content)
    answers = each(others, lambda host: _write(session, host, content))
    paired = list(zip(others, answers, strict=True))
    return Spread(
        hosts=(lead.name, *(host.name for host, answer in paired if answer is True)),
        failed={h.name: answer for h, answer in paired if isinstance(answer, VllmdeployError)},
    )


def _write(session: Session, host: Host, content: bytes) -> bool:
    """Whether there is a copy, which is the new one now."""
    if host.name in session.failures:
        raise session.failures[host.name]
    shell = session.shells[host.name]
    way = ask_access(shell, session.wanted.cluster, session.sudo)
    if not _has_keys(shell, way):
        return False
    command = way.of(files.rewrite(_path(way), content))
    check(host.name, command, shell.run(command), doing="writing the API keys")
    return True


def _read(session: Session, way: Access) -> str:
    lead = session.lead.name
    shell = session.shells[lead]
    if not _has_keys(shell, way):
        raise UsageError(
            f"there are no API keys on {lead} yet",
            hint="the first start of a service makes one; --file FILE changes a file here",
        )
    command = way.of(files.read(_path(way)))
    return check(lead, command, shell.run(command), doing="reading the API keys").stdout


def _has_keys(shell: Shell, way: Access) -> bool:
    return _is_there(shell, way, _path(way))


def _is_there(shell: Shell, way: Access, path: str) -> bool:
    command = way.of(files.is_there(path))
    said = check(shell.host, command, shell.run(command), doing="looking for the keys")
    return said.stdout == "yes\n"


def _path(way: Access) -> str:
    return f"{keys_folder(way.layout)}/{KEYS}"
