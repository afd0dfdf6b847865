"""`trust`: shows the SSH host keys of all hosts and records those that are accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import terminal, world
from vllmdeploy.errors import HostError, UsageError

if TYPE_CHECKING:
    from vllmdeploy.core.host import Host
    from vllmdeploy.effects.route import SshSettings
    from vllmdeploy.effects.trust import Introduced, Target

_STATES = {"known": "known", "unknown": "new", "changed": "CHANGED", "revoked": "REVOKED"}


def trust(
    context: typer.Context,
    hosts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HOST]...",
            help="Only these: names in worker_nodes.txt, or any [user@]host[:port]. Default: all.",
            show_default=False,
        ),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Record new keys without asking.")] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Take this host's recorded key out, as after a new installation."),
    ] = None,
) -> None:
    """Record the SSH host keys of all hosts, after showing their fingerprints.

    Example: vllmdeploy trust
    """
    from vllmdeploy.effects.connect import is_this_machine
    from vllmdeploy.effects.trust import waves
    from vllmdeploy.workflows.connecting import ssh_settings

    given = world(context)
    loaded = given.loaded()
    ssh = ssh_settings(loaded.settings, ask=output.ask_password if terminal() else None)
    if forget:
        _forget(forget, loaded.fleet.everyone, ssh)
        return
    wanted = [*_named(hosts, loaded.fleet.everyone)] if hosts else loaded.fleet.everyone
    remote = [host for host in wanted if not is_this_machine(host)]
    if not remote:
        output.say("every host is this machine: there is no key to record")
    to_ask, failures = waves(remote, ssh)
    seen: list[Introduced | HostError] = [*failures]
    for wave in to_ask:
        seen += _meet(wave, ssh, yes=yes, show=output.say if given.json else output.answer)
    if given.json:
        output.document({"hosts": [_document(answer) for answer in seen]})
    _raise_worst(seen)


def _named(texts: Sequence[str], fleet: Sequence[Host]) -> Iterator[Host]:
    """A host that no file lists has a key too: the head, for who goes from host to host."""
    from vllmdeploy.config.places import place
    from vllmdeploy.core.host import Host

    for text in dict.fromkeys(texts):
        try:
            there = place(text)
        except ValueError as error:
            raise UsageError(str(error)) from error
        listed = next((host for host in fleet if host.name == there.name), None)
        yield listed or Host(
            name=there.name, address=there.address, user=there.user, port=there.port
        )


def _meet(
    wave: Sequence[Target], ssh: SshSettings, *, yes: bool, show: Callable[[str], None]
) -> list[Introduced | HostError]:
    """Show the keys of hosts that can be asked by now, and record the new ones if accepted."""
    from vllmdeploy.effects.known_hosts import Trust
    from vllmdeploy.effects.trust import Introduced, introduce, namesakes, record

    answers = introduce(wave, ssh)
    found = [answer for answer in answers if isinstance(answer, Introduced)]
    same = namesakes(found)
    rows = [_row(answer, same.get(answer.host)) for answer in found]
    if rows:
        show(output.table(("HOST", "ADDRESS", "KEY", "STATE"), rows))
    new = [answer for answer in found if answer.trust is Trust.UNKNOWN]
    if new:
        output.say("compare on each host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
        output.confirm(f"Record {len(new)} new key(s) in {ssh.known_hosts}?", yes=yes)
        record(ssh.known_hosts, new)
        output.say(f"recorded {len(new)} key(s) in {ssh.known_hosts}")
    return answers


def _row(answer: Introduced, same_as: str | None) -> tuple[str, str, str, str]:
    state = _STATES[answer.trust.value]
    if same_as:
        state += f"; same key as {same_as}: one machine listed twice, or cloned disks"
    return answer.host, str(answer.hop), str(answer.key), state


def _document(answer: Introduced | HostError) -> dict[str, str]:
    if isinstance(answer, HostError):
        return {"host": answer.host, "error": answer.message}
    return {
        "host": answer.host,
        "address": answer.hop.address,
        "port": str(answer.hop.port),
        "kind": answer.key.kind,
        "fingerprint": answer.key.fingerprint,
        "state": _STATES[answer.trust.value].lower(),
    }


def _raise_worst(seen: Sequence[Introduced | HostError]) -> None:
    """Every failure is told; a changed key is the one the program ends with."""
    unreached = [answer for answer in seen if isinstance(answer, HostError)]
    changed = [answer.changed for answer in seen if not isinstance(answer, HostError)]
    failures = [*(error for error in changed if error is not None), *unreached]
    for other in failures[1:]:
        output.error(other)
    if failures:
        raise failures[0]


def _forget(names: Sequence[str], hosts: Sequence[Host], ssh: SshSettings) -> None:
    from vllmdeploy.effects.trust import elsewhere, forget, recorded_names

    for name in names:
        recorded = recorded_names(name, hosts, ssh)
        removed = forget(ssh.known_hosts, recorded)
        others = elsewhere(ssh, recorded)
        if not removed and not others:
            raise UsageError(f"{name}: no key of it is recorded in {ssh.known_hosts}")
        output.say(f"{name}: {removed} key(s) taken out of {ssh.known_hosts}")
        for place in others:
            output.say(f"{name}: also recorded at {place}, which is not ours to change")
