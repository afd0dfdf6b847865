"""`model sync`: bring a model to every host, each finished one helping the others."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.audit import Tally
from vllmdeploy.effects.execute import OnEvent, Stop
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.transfer import Distribution
from vllmdeploy.effects.transfer_events import OnSyncEvent
from vllmdeploy.effects.transfer_freight import Freight, HostShell, Party
from vllmdeploy.effects.transfer_hosts import Work
from vllmdeploy.effects.transfer_ranges import range_of
from vllmdeploy.errors import CommandFailed, VllmdeployError
from vllmdeploy.plan.network import AUTO
from vllmdeploy.plan.transfer_pieces import Piece, lanes_for, pieces_of, with_ranges
from vllmdeploy.plan.transfer_standing import Stand, Standing, stand
from vllmdeploy.tools import model_files, ranges, rsync, stores, sync_keys
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.manifest_names import ModelPlace, place_of
from vllmdeploy.tools.sync_keys import KeyPair
from vllmdeploy.workflows import sync_laying
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.sync_host import HostWork, refusal
from vllmdeploy.workflows.sync_look import Seen, look, manifest_of, stores_asked, with_roads


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`limit_kib_s`: what one host may send, and receive, in all. `only`: bring it to no others."""

    interface: str = AUTO
    limit_kib_s: int | None = None
    through_control: bool = False
    only: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One model, who has it, who gets it, and who cannot."""

    place: ModelPlace
    manifest: Manifest
    options: Options
    seen: Mapping[str, Seen]
    stands: Mapping[str, Stand]
    notes: tuple[str, ...] = ()
    pair: KeyPair = sync_laying.NOT_YET

    @property
    def sources(self) -> tuple[str, ...]:
        return self._standing(Standing.READY)

    @property
    def targets(self) -> tuple[str, ...]:
        takes = (Standing.ABSENT, Standing.PARTIAL, Standing.UNFINISHED, Standing.BY_HAND)
        return self._standing(*takes)

    @property
    def refused(self) -> tuple[str, ...]:
        return self._standing(Standing.REFUSED)

    def _standing(self, *which: Standing) -> tuple[str, ...]:
        return tuple(name for name, one in self.stands.items() if one.standing in which)


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What came of it. `wire` counts the bytes that came to hosts; `shared` hosts see the model
    of another one."""

    done: tuple[str, ...]
    failed: Mapping[str, VllmdeployError]
    shared: Mapping[str, str] = field(default_factory=dict[str, str])
    wire: int = 0

    def tally(self) -> Tally:
        return Tally.of_hosts(done=len(self.done), failed=self.failed.values())

    def and_then(self, later: Synced) -> Synced:
        """Both rounds as one: what failed at first may have been done later."""
        done = dict.fromkeys((*self.done, *later.done))
        still = {name: error for name, error in self.failed.items() if name not in done}
        return Synced(
            done=tuple(done),
            failed=still | dict(later.failed),
            shared=dict(self.shared) | dict(later.shared),
            wire=self.wire + later.wire,
        )


def look_at(session: Session, name: str, options: Options) -> Job:
    """Everything that decides; nothing is changed by looking."""
    place = place_of(session.settings.model_path, name)
    seen = look(session, place)
    manifest = manifest_of(session, seen, place)
    stands = {host: stand(one.store, manifest, name) for host, one in seen.items()}
    if options.only is not None:
        stands = {
            host: one
            for host, one in stands.items()
            if host in options.only or one.standing is Standing.READY
        }
    job = Job(place=place, manifest=manifest, options=options, seen=seen, stands=stands)
    if not job.targets or options.through_control:
        return job
    seen, notes = with_roads(session, seen, interface=options.interface)
    return replace(job, seen=seen, notes=notes, pair=sync_laying.pair_held(session))


def decide(session: Session, job: Job) -> Plan:
    """The plan to show: keys where they are missing, then what every host gets.

    Who sends what to whom is decided while it runs; shown is the first piece from the first
    host that has it.
    """
    draft = Draft(notes=list(job.notes))
    needs: dict[str, tuple[str, ...]] = {}
    if job.targets:
        members = [job.seen[name].member for name in (*job.sources, *job.targets)]
        for step in sync_laying.keys_plan(session, members, job.pair):
            needs[step.host] = (*needs.get(step.host, ()), draft.add(step))
    for name in job.targets:
        cause = job.stands[name].cause(job.manifest.total)
        for verb, command in _shown(job, name):
            key = draft.add(
                Step(
                    host=name,
                    verb=verb,
                    subject=f"model {job.place.name}",
                    cause=cause,
                    action=Run(job.seen[name].member.access.of(command)),
                    needs=needs.get(name, ()),
                )
            )
            needs[name] = (key,)
    for name in job.refused:
        draft.note(f"{name}: left out: {job.stands[name].why}")
    return draft.finished()


def _shown(job: Job, name: str) -> Sequence[tuple[str, Command]]:
    piece = _pieces(job)[0]
    source, member = job.seen[job.sources[0]].member, job.seen[name].member
    direct = source.road if source.direct and member.direct else None
    if piece.start is not None:
        receive = _shown_range(job, piece, name, direct)
    elif direct is not None:
        wanted = rsync.Pull(
            place=job.place,
            number=piece.number,
            paths=piece.paths,
            size=piece.size,
            limit_kib_s=_per_stream(job),
        )
        receive = rsync.pull(wanted, direct, sync_keys.keys(member.access.layout))
    elif len(piece.paths) == 1:
        receive = rsync.take_file(job.place, piece.paths[0], 0)
    else:
        receive = rsync.take_files(job.place)
    return (
        ("receive", receive),
        ("publish", model_files.publish(job.place, job.manifest)),
        ("mark ready", model_files.mark_ready(job.place, job.manifest)),
    )


def _shown_range(job: Job, piece: Piece, name: str, direct: rsync.Road | None) -> Command:
    wanted = range_of(piece, job.place, _per_stream(job))
    if direct is None:
        return ranges.take(wanted, wanted.start)
    keys = sync_keys.keys(job.seen[name].member.access.layout)
    return ranges.lane(job.place, direct, keys, limit_kib_s=wanted.limit_kib_s)


def _pieces(job: Job) -> tuple[Piece, ...]:
    """Ranges are for hosts that send on what they get; to a single one files go with less ado. What
    has begun to grow in ranges goes on so."""
    pieces = pieces_of(job.manifest)
    found = (job.seen[name].store.incoming(job.place.name) for name in job.targets)
    helps = len(job.targets) > 1 and not job.options.through_control
    return with_ranges(pieces) if helps or any(one and one.came for one in found) else pieces


def _per_stream(job: Job) -> int | None:
    limit = job.options.limit_kib_s
    return max(1, limit // lanes_for(_pieces(job))) if limit else None


def carry_out(
    session: Session, job: Job, on_step: OnEvent, on_event: OnSyncEvent, stop: Stop
) -> Synced:
    """Keys first, then the distribution; what failed is told by host."""
    failed: dict[str, VllmdeployError] = {
        name: refusal(name, job.stands[name]) for name in job.refused
    }
    if not job.targets:
        return Synced(done=(), failed=failed)
    writers = shared_stores(session, job)
    targets = [name for name in job.targets if writers.get(name, name) == name]
    if targets:
        names = (*job.sources, *job.targets)
        job = replace(job, seen=sync_laying.laid(session, job.seen, names, on_step, stop))
    freight = Freight(place=job.place, manifest=job.manifest, limit_kib_s=_per_stream(job))
    pieces = _pieces(job)
    work = HostWork(freight, pieces)
    distribution = Distribution(
        pieces=pieces,
        freight=freight,
        work=Work(prepare=work.prepare, finish=work.finish),
        on_event=on_event,
        stop=stop,
    )
    failed |= distribution.run(
        [_party(session, job, name) for name in job.sources],
        [_party(session, job, name) for name in targets],
    )
    if stop.event.is_set():
        raise KeyboardInterrupt
    shared = {name: writer for name, writer in writers.items() if writer != name}
    failed |= _not_seen(session, job, [name for name in job.targets if name in shared])
    done = tuple(name for name in job.targets if name not in failed)
    return Synced(done=done, failed=failed, shared=shared, wire=distribution.wire)


def _party(session: Session, job: Job, name: str) -> Party:
    shell = cast("HostShell", session.shells[name])
    return Party(member=job.seen[name].member, shell=shell)


def shared_stores(session: Session, job: Job) -> dict[str, str]:
    """For every host the one that writes what it sees: itself, where its folder is its own."""
    root = job.place.root
    ready_first = sorted(job.seen, key=lambda name: name not in job.sources)
    nonces = {name: secrets.token_hex(16) for name in ready_first}
    parties = [_party(session, job, name) for name in ready_first]
    try:
        left = dict.fromkeys(
            party.name
            for party, answer in zip(
                parties, each(parties, lambda p: _leave(p, root, nonces)), strict=True
            )
            if answer is True
        )
        seen = each(parties, lambda p: ask_one(p.shell, stores.seen(root), p.member.access))
    finally:
        each(parties, lambda p: _take_away(p, root, nonces))
    seen_by = {
        party.name: answer
        for party, answer in zip(parties, seen, strict=True)
        if not isinstance(answer, VllmdeployError)
    }
    return stores.shared({name: nonces[name] for name in left}, seen_by)


def _leave(party: Party, root: str, nonces: Mapping[str, str]) -> bool:
    command = party.member.access.of(stores.leave(root, nonces[party.name]))
    return party.shell.run(command).ok


def _take_away(party: Party, root: str, nonces: Mapping[str, str]) -> None:
    party.shell.run(party.member.access.of(stores.take_away(root, nonces[party.name])))


def _not_seen(session: Session, job: Job, names: Sequence[str]) -> dict[str, VllmdeployError]:
    """Readers of a shared folder that do not see the model READY after it was written."""
    members = [(name, job.seen[name].member.access) for name in names]
    missing: dict[str, VllmdeployError] = {}
    for name, answer in zip(names, stores_asked(session, members, job.place), strict=True):
        if isinstance(answer, VllmdeployError):
            missing[name] = answer
            continue
        found = stand(answer, job.manifest, job.place.name)
        if found.standing is not Standing.READY:
            missing[name] = CommandFailed(
                name,
                f"look at {job.place.folder}",
                1,
                f"{found.cause(job.manifest.total)}, though its folder is shared with a host that "
                "has it",
            )
    return missing
