"""The steps that end MPS daemons, and those that start a group of engines anew with its daemon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.plan import Draft, Run, Step, Wait
from vllmdeploy.plan.mps import (
    FoundMps,
    MpsWanted,
    Scope,
    foreign,
    scopes,
    start_scopes,
    write_modes,
)
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.plan.supervise import InDocker, Supervisor
from vllmdeploy.tools import files, mps
from vllmdeploy.tools.mps_found import Client, Daemon
from vllmdeploy.tools.vllm_engine import START_LIMIT_S, parse_engine

_END_S = 60.0
# A client that is killed in the middle of a kernel leaves the others' server undefined.
_CLIENT_STOP_S = 60


def orphans(cluster: str, host: FoundMps) -> tuple[FoundNode, ...]:
    """Those whose daemon is gone, as after a reboot: they compute without it, taking turns."""
    return tuple(one for one in members(cluster, host) if host.mps.at(one.mps) is None)


def members(cluster: str, host: FoundMps) -> tuple[FoundNode, ...]:
    """Nodes of ours, containers or not, whose engines are clients of a daemon."""
    return tuple(one for one in host.found.ours(cluster) if one.running and one.mps)


def node_of(client: Client, nodes: Iterable[FoundNode]) -> str:
    """The name of the one of these that a client lives in, empty where it is none of them."""
    return next(
        (
            node.name
            for node in nodes
            if node.name == client.node or same_container(node.id, client.container)
        ),
        "",
    )


def meant(wanted: MpsWanted, host: FoundMps) -> tuple[Daemon, ...]:
    """Our daemons on this host; those of the named cards, where some are named."""
    ours = (one for one in host.mps.daemons if not foreign(wanted.cluster, one))
    if not wanted.cards:
        return tuple(ours)
    asked = scopes(wanted, host.found)
    return tuple(one for one in ours if any(scope.serves(one) for scope in asked))


def in_use(
    host: FoundMps, daemons: Sequence[Daemon], *, besides: Sequence[FoundNode]
) -> Iterable[str]:
    """Clients that would lose their card: they are named, and nothing is taken from them."""
    known = {one.id: one.name for one in host.found.containers}
    for daemon in daemons:
        for client in daemon.clients:
            if node_of(client, besides):
                continue
            name = next((known[key] for key in known if same_container(key, client.container)), "")
            of = f" of container {name}" if name else f" of {client.node}" if client.node else ""
            yield f"{host.name}: {daemon.pipe} is used by {client}{of}"


def same_container(identifier: str, other: str) -> bool:
    """Docker shows ids long or short."""
    return bool(identifier and other) and (
        other.startswith(identifier) or identifier.startswith(other)
    )


def stop(
    draft: Draft,
    wanted: MpsWanted,
    host: FoundMps,
    daemons: Sequence[Daemon],
    needs: tuple[str, ...] = (),
    *,
    force: bool = False,
    cause: str = "mps stop",
) -> tuple[str, ...]:
    """The keys of the steps after which the daemons are gone and the cards as they were."""
    gone = tuple(_end(draft, host, one, needs, force=force, cause=cause) for one in daemons)
    return _restore(draft, wanted, host, daemons, gone)


def _end(
    draft: Draft,
    host: FoundMps,
    daemon: Daemon,
    needs: tuple[str, ...],
    *,
    force: bool,
    cause: str,
) -> str:
    subject = f"MPS daemon {daemon.pid} at {daemon.pipe}"
    if force:
        needs = (
            tuple(
                _step(draft, host, "end", f"MPS server {one.pid}", command, needs, "--force")
                for one in daemon.servers
                for command in (mps.shut_server(daemon.pipe, one.pid),)
            )
            or needs
        )
    told = _step(draft, host, "stop", subject, mps.stop(daemon.pipe), needs, cause)

    def missing(result: Result) -> str | None:
        return None if result.ok else f"process {daemon.pid} has not ended"

    waiting = Wait(
        host.found.access.of(mps.ended(daemon.pid)), missing, limit_s=_END_S, every_s=0.2
    )
    return draft.add(
        Step(
            host=host.name,
            verb="await end of",
            subject=subject,
            cause="its servers end first",
            action=waiting,
            needs=(told,),
            hint="`vllmdeploy mps status` shows its clients; --force ends them",
        )
    )


def _restore(
    draft: Draft,
    wanted: MpsWanted,
    host: FoundMps,
    daemons: Sequence[Daemon],
    needs: tuple[str, ...],
) -> tuple[str, ...]:
    """Compute modes as they were before `--exclusive`, for the cards that lose their daemon."""
    saved = dict(host.mps.saved)
    served = {card for one in daemons for card in one.cards}
    others = {card for one in host.mps.daemons if one not in daemons for card in one.cards}
    # A daemon that died by itself leaves its cards' modes behind: they are restored all the same.
    back = [card for card in sorted(saved) if card in served or card not in others]
    if not back:
        return needs
    keys = tuple(
        _step(
            draft,
            host,
            "restore",
            f"compute mode of {card}",
            mps.compute_mode(card, saved[card]),
            needs,
            f"it was {saved[card]}",
        )
        for card in back
    )
    left = {card: mode for card, mode in saved.items() if card not in back}
    kept = write_modes(host, left) if left else files.remove(host.saved_modes)
    done = _step(draft, host, "forget", "compute modes", kept, keys, "restored")
    return (done,)


def restart(
    draft: Draft, wanted: MpsWanted, host: FoundMps, runtime: Supervisor, *, force: bool = False
) -> None:
    """A daemon serves no new client until all of a faulted group are gone: so all of a group's
    nodes stop, then its daemon starts anew, then they do, one at a time."""
    daemons = meant(wanted, host)
    again = _again(wanted, host, daemons)
    pipes = {daemon.pipe for daemon in daemons} | {scope.pipe for scope in again}
    group = [one for one in members(wanted.cluster, host) if one.mps in pipes]
    cause = _fault(daemons) or "mps restart"
    stopped = tuple(_stop_member(draft, host, one, runtime, cause) for one in group)
    ended = tuple(_end(draft, host, one, stopped, force=force, cause=cause) for one in daemons)
    # What was exclusive or limited stays so, and what it was before stays written down.
    kept = {one.pipe: int(one.percentage) for one in daemons if one.percentage.isdigit()}
    limited = {pipe: percent for pipe, percent in kept.items() if percent < 100}
    exclusive = wanted.exclusive or bool(host.mps.saved)
    wished = replace(wanted, exclusive=exclusive, kept=limited)
    ready = start_scopes(draft, wished, host, again, ended or stopped, cause="mps restart")
    for one in group:
        ready = (_start_member(draft, host, one, runtime, ready or ended),)


def _again(wanted: MpsWanted, host: FoundMps, daemons: Sequence[Daemon]) -> list[Scope]:
    """The scopes asked for, but for those that another daemon of ours goes on serving."""
    kept = [one for one in host.mps.daemons if one not in daemons]
    return [
        scope
        for scope in scopes(wanted, host.found)
        if not any(scope.pipe == one.pipe for one in kept)
    ]


def _fault(daemons: Sequence[Daemon]) -> str:
    return next(
        (
            f"server {server.pid} is in a fault"
            for daemon in daemons
            for server in daemon.servers
            if server.faulted
        ),
        "",
    )


def _supervisor(host: FoundMps, node: FoundNode, runtime: Supervisor) -> Supervisor:
    """Who has this node: a container may be left from before RUNTIME was changed."""
    contained = any(one.name == node.name for one in host.found.containers)
    return InDocker(_CLIENT_STOP_S) if contained else runtime


def _stop_member(
    draft: Draft, host: FoundMps, node: FoundNode, runtime: Supervisor, cause: str
) -> str:
    command = _supervisor(host, node, runtime).stop(node, host.found.access.layout)
    return _step(draft, host, "stop", node.name, command, (), cause)


def _start_member(
    draft: Draft, host: FoundMps, member: FoundNode, runtime: Supervisor, needs: tuple[str, ...]
) -> str:
    """The next one begins once this one's engine is up: vLLM measures what memory is free."""
    access, owner = host.found.access, _supervisor(host, member, runtime)
    layout = access.layout
    begun = _step(
        draft, host, "start", member.name, owner.start(member, layout), needs, "its group"
    )
    question = owner.ctl(member.name, layout, member.package, "status")
    log = ("its last lines", access.of(owner.logs(member.name, layout, tail=30)))

    def missing(result: Result) -> str | None:
        state = parse_engine(result, member.name)
        return None if state.state == "running" else state.words

    return draft.add(
        Step(
            host=host.name,
            verb="await",
            subject=member.name,
            cause="its engine answers before the next of its group begins",
            action=Wait(
                access.of(question), missing, limit_s=START_LIMIT_S, every_s=2.0, explain=(log,)
            ),
            needs=(begun,),
        )
    )


def _step(
    draft: Draft,
    host: FoundMps,
    verb: str,
    subject: str,
    command: Command,
    needs: tuple[str, ...],
    cause: str,
) -> str:
    return draft.add(
        Step(
            host=host.name,
            verb=verb,
            subject=subject,
            cause=cause,
            action=Run(host.found.access.of(command)),
            needs=needs,
            destructive=verb in ("stop", "end"),
        )
    )
