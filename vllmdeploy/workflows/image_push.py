"""`image push`: bring an image from one host's engine to others, each helping the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.effects.ask import ask
from vllmdeploy.effects.audit import Tally
from vllmdeploy.effects.execute import OnEvent, Stop
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.transfer import Distribution
from vllmdeploy.effects.transfer_events import OnSyncEvent
from vllmdeploy.effects.transfer_freight import DiskFull, Freight, HostShell, Party
from vllmdeploy.effects.transfer_hosts import Work
from vllmdeploy.errors import PreflightRefused, UsageError, VllmdeployError
from vllmdeploy.plan.image_push import Standing, Wanted, source_of, stand
from vllmdeploy.plan.transfer_pieces import pieces_of, with_ranges
from vllmdeploy.tools import docker, image_archive, images, ranges, sync_keys
from vllmdeploy.tools.images import Store
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.ranges import Range
from vllmdeploy.tools.sync_keys import KeyPair
from vllmdeploy.workflows import sync_laying
from vllmdeploy.workflows.image_host import ImageWork, give_name, take_apart, take_away, unnamed
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.sync_look import Seen, look, with_roads


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`asked`: the hosts that are to have it, those out of reach included."""

    wanted: Wanted
    asked: tuple[str, ...]
    seen: Mapping[str, Seen]
    notes: tuple[str, ...] = ()
    pair: KeyPair = sync_laying.NOT_YET

    @property
    def targets(self) -> tuple[str, ...]:
        return self.wanted.standing(Standing.ABSENT)

    @property
    def refused(self) -> tuple[str, ...]:
        return self.wanted.standing(Standing.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`wire` counts the bytes that came to hosts."""

    done: tuple[str, ...]
    failed: Mapping[str, VllmdeployError] = field(default_factory=dict[str, VllmdeployError])
    wire: int = 0
    digest: str = ""

    def tally(self) -> Tally:
        return Tally.of_hosts(done=len(self.done), failed=self.failed.values())


def look_at(session: Session, reference: str, to: Sequence[str], *, interface: str) -> Job:
    """Everything that decides; nothing is changed by looking."""
    seen = look(session, None)
    stores, arches = _stores(session, seen)
    source = source_of(stores, reference, lead=session.lead.name)
    image = stores[source].find(reference) if source else None
    if source is None or image is None:
        raise UsageError(
            f"no host has an image {reference}",
            hint="`vllmdeploy image list` shows what they have; `docker pull` or `docker load` it"
            " on the head first",
        )
    asked = _targets(session, reference, to)
    called = reference if reference in image.references else f"{reference}:latest"
    named = called if called in image.references else ""
    wanted = Wanted(
        image=image,
        reference=named,
        source=source,
        stands={
            name: stand(stores[name], image, named, arch=arches[name])
            for name in asked
            if name in seen and name != source
        },
    )
    job = Job(wanted=wanted, asked=asked, seen=seen)
    if not job.targets:
        return job
    chosen = {name: seen[name] for name in (source, *job.targets)}
    chosen, notes = with_roads(session, chosen, interface=interface)
    return replace(job, seen={**seen, **chosen}, notes=notes, pair=sync_laying.pair_held(session))


def _stores(session: Session, seen: Mapping[str, Seen]) -> tuple[dict[str, Store], dict[str, str]]:
    """Every host's images and its architecture; an engine that cannot be used has a problem."""

    def asked(one: Seen) -> tuple[Store, str]:
        shell = session.shells[one.name]
        engine, store = ask(shell, (docker.ENGINE, images.STORE), one.member.access)
        return (replace(store, problem=engine.problem) if engine.problem else store), engine.arch

    stores: dict[str, Store] = {}
    arches: dict[str, str] = {}
    for found, answer in zip(seen, each(list(seen.values()), asked), strict=True):
        if isinstance(answer, VllmdeployError):
            stores[found], arches[found] = Store(problem=answer.message), ""
        else:
            stores[found], arches[found] = answer
    return stores, arches


def _targets(session: Session, reference: str, to: Sequence[str]) -> tuple[str, ...]:
    """Hosts and groups by name; without any, the hosts whose group runs this image, else all."""
    hosts = session.fleet.everyone
    if to:
        unknown = [one for one in to if not any(one in (h.name, h.group) for h in hosts)]
        if unknown:
            known = ", ".join(host.name for host in hosts)
            raise UsageError(f"--to {unknown[0]}: no host and no group", hint=f"hosts: {known}")
        return tuple(host.name for host in hosts if host.name in to or host.group in to)
    groups = session.wanted.groups
    users = [host.name for host in hosts if groups[host.group].image == reference]
    return tuple(users or (host.name for host in hosts))


def decide(session: Session, job: Job) -> Plan:
    """The plan to show. Who sends what to whom is decided while it runs; shown is a first piece
    from the source."""
    draft = Draft(notes=list(job.notes))
    needs: dict[str, tuple[str, ...]] = {}
    wanted = job.wanted
    names = (wanted.source, *job.targets)
    if job.targets:
        members = [job.seen[name].member for name in names]
        for step in sync_laying.keys_plan(session, members, job.pair):
            needs[step.host] = (*needs.get(step.host, ()), draft.add(step))
    shown = [(wanted.source, "take apart", _export(job))] if job.targets else []
    shown += [(name, verb, one) for name in job.targets for verb, one in _receiving(job, name)]
    shown += [(name, "tag", _tag(job, name)) for name in unnamed(wanted)]
    subject = f"image {wanted.reference or wanted.image.short}"
    for host, verb, command in shown:
        cause = f"lacking on {', '.join(job.targets)}"
        if host != wanted.source:
            cause = wanted.stands[host].cause(wanted.image)
        action = Run(job.seen[host].member.access.of(command))
        step = Step(host, verb, subject, cause, action, needs=needs.get(host, ()))
        needs[host] = (draft.add(step),)
    for host in job.refused:
        draft.note(f"{host}: left out: {wanted.stands[host].why}")
    return draft.finished()


def _export(job: Job) -> Command:
    wanted, access = job.wanted, job.seen[job.wanted.source].member.access
    return image_archive.export(
        ModelPlace(access.layout.images, wanted.folder).incoming,
        wanted.image.id,
        spared=wanted.spared,
        piece_bytes=wanted.piece_bytes,
        owner=access.user,
    )


def _receiving(job: Job, name: str) -> Sequence[tuple[str, Command]]:
    wanted, member = job.wanted, job.seen[name].member
    source, place = job.seen[wanted.source].member, _place(job, name)
    path = f"{image_archive.folder_of(wanted.stands[name].lacks[0])}/00000"
    if source.road is not None and source.direct and member.direct:
        keys = sync_keys.keys(member.access.layout)
        receive = ranges.lane(place, source.road, keys, limit_kib_s=None)
    else:
        first = Range(place=place, number=0, path=path, start=0, end=wanted.piece_bytes)
        receive = ranges.take(first, first.start)
    load = image_archive.load(place.incoming, wanted.stands[name].lacks, b"")
    named = [("tag", _tag(job, name))] if wanted.reference else []
    return [("receive", receive), ("load", load), *named]


def _tag(job: Job, name: str) -> Command:
    stand = job.wanted.stands[name]
    return images.tag(stand.id or job.wanted.image.id, job.wanted.reference)


def _place(job: Job, name: str) -> ModelPlace:
    return ModelPlace(job.seen[name].member.access.layout.images, job.wanted.folder)


def carry_out(
    session: Session,
    job: Job,
    on_step: OnEvent,
    on_event: OnSyncEvent,
    stop: Stop,
    *,
    say: Callable[[str], None],
) -> Pushed:
    """Keys, pieces, then the distribution; what failed is told by host."""
    wanted = job.wanted
    failed: dict[str, VllmdeployError] = {
        one: PreflightRefused([f"{one}: {wanted.stands[one].why}"]) for one in job.refused
    }
    failed |= _named(session, job)
    done = tuple(one for one in unnamed(wanted) if one not in failed)
    if not job.targets:
        return Pushed(done=done, failed=failed)
    names = (wanted.source, *job.targets)
    job = replace(job, seen=sync_laying.laid(session, job.seen, names, on_step, stop))
    source = _party(session, job, wanted.source)
    say(f"{source.name}: taking {wanted.reference or wanted.image.short} apart")
    apart = take_apart(source, wanted)
    freight = Freight(
        place=_place(job, wanted.source),
        manifest=apart.manifest,
        mend=f"remove {source.root} on {source.name} and push again",
    )
    pieces = with_ranges(pieces_of(apart.manifest))
    work = ImageWork(wanted, freight, pieces, apart)
    distribution = Distribution(
        pieces=pieces,
        freight=freight,
        work=Work(prepare=work.prepare, finish=work.finish),
        on_event=on_event,
        stop=stop,
    )
    parties = [_party(session, job, one) for one in job.targets]
    failed |= distribution.run([source], parties)
    if stop.event.is_set():
        raise KeyboardInterrupt
    _swept(wanted, source, parties, failed)
    done = (*done, *(one for one in job.targets if one not in failed))
    return Pushed(done=done, failed=failed, wire=distribution.wire, digest=apart.exported.digest)


def _party(session: Session, job: Job, name: str) -> Party:
    member = job.seen[name].member
    shell = cast("HostShell", session.shells[name])
    return Party(member=member, shell=shell, root=member.access.layout.images)


def _named(session: Session, job: Job) -> dict[str, VllmdeployError]:
    """Hosts that have it under another name only need the name."""
    parties = [_party(session, job, one) for one in unnamed(job.wanted)]
    answers = each(parties, lambda p: give_name(p, job.wanted, job.wanted.stands[p.name].id))
    pairs = zip(parties, answers, strict=True)
    return {party.name: one for party, one in pairs if isinstance(one, VllmdeployError)}


def _swept(
    wanted: Wanted,
    source: Party,
    parties: Sequence[Party],
    failed: Mapping[str, VllmdeployError],
) -> None:
    """What a host needs to go on from where it was stays; a full disk gets its room back."""
    goes_on = {
        name for name, error in failed.items() if not isinstance(error, DiskFull | PreflightRefused)
    }
    swept = [party for party in parties if party.name not in goes_on]
    each(swept if goes_on else [*swept, source], lambda party: take_away(party, wanted))
