"""What a sync starts from: every host's copy of the model, and how hosts reach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.core.command import check
from vllmdeploy.core.host import Host
from vllmdeploy.effects.ask import ask, ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import HostError, PreflightRefused, UsageError, VllmdeployError
from vllmdeploy.plan import network as networks
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.transfer_keys import Member
from vllmdeploy.tools import access, files, model_files, network, sync_keys
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.manifest import Manifest, parse
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files_found import FoundStore
from vllmdeploy.tools.network import Links
from vllmdeploy.tools.rsync import Road
from vllmdeploy.workflows.session import Session


@dataclass(frozen=True, slots=True)
class Seen:
    """One host: its part in the sync, its models, its addresses."""

    member: Member
    store: FoundStore
    links: Links
    reach: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.member.host.name


def look(session: Session, place: ModelPlace | None) -> dict[str, Seen]:
    """Every host that answers, with its models where a place is given; the others are in the
    session's failures."""
    there = [host for host in session.fleet.hosts if host.name in session.shells]
    answers = each(there, lambda host: _look_at(session, host, place))
    seen: dict[str, Seen] = {}
    for host, answer in zip(there, answers, strict=True):
        if isinstance(answer, HostError):
            session.failures.setdefault(host.name, answer)
        elif isinstance(answer, VllmdeployError):
            raise answer
        else:
            seen[host.name] = answer
    return seen


def _look_at(session: Session, host: Host, place: ModelPlace | None) -> Seen:
    shell, cluster = session.shells[host.name], session.wanted.cluster
    rights = ask_one(shell, access.rights(cluster, session.sudo))
    way = access.decide(cluster, session.sudo, rights)
    layout = way.layout
    facts = (
        network.LINKS,
        sync_keys.PEERING,
        files.digests(layout.sync_secrets),
        files.digests(layout.sync),
        sync_keys.authorized(cluster),
    )
    looks = (model_files.look(place.root, place.name),) if place else ()
    links, peering, secrets, serves, authorized, *models = ask(shell, (*facts, *looks), way)
    member = Member(
        host=host,
        access=way,
        peering=peering,
        secrets=secrets,
        serves=serves,
        authorized=authorized,
    )
    return Seen(member, models[0] if models else FoundStore(there=False), links, {})


def with_roads(
    session: Session, seen: Mapping[str, Seen], *, interface: str
) -> tuple[dict[str, Seen], tuple[str, ...]]:
    """An address on the data network for every host, and what there is to say about it."""
    by_host = any(one.member.host.ip or one.member.host.interface for one in seen.values())
    reached = _reached(session, seen, named=by_host or interface != networks.AUTO)
    found = [
        FoundHost(host=one.member.host, access=one.member.access, links=one.links, reach=one.reach)
        for one in reached.values()
    ]
    choice = networks.choose(found, interface=interface)
    if choice.problems and interface != networks.AUTO:
        raise PreflightRefused(choice.problems, hint="--through-control needs no such network")
    if choice.problems:
        notes = (*choice.problems, "so all bytes go through this machine")
        return dict(seen), notes
    with_road = {
        name: replace(one, member=_with_road(one.member, choice.places[name].ip))
        for name, one in reached.items()
    }
    return with_road, choice.notes


def _with_road(member: Member, ip: str) -> Member:
    return replace(member, road=Road(ip=ip, user=member.peering.user, port=member.peering.port))


def _reached(session: Session, seen: Mapping[str, Seen], *, named: bool) -> dict[str, Seen]:
    """Every host tries the sshd of every other, on each address that they might use."""

    def try_others(one: Seen) -> Seen:
        by_port: dict[int, list[str]] = {}
        for other in seen.values():
            if other is not one:
                ips = by_port.setdefault(other.member.peering.port, [])
                ips += one.links.may_use(other.links, named=named)
        tried: dict[str, str] = {}
        for port, ips in sorted(by_port.items()):
            if ips:
                answers: dict[str, str] = ask_one(
                    session.shells[one.name], network.reach(ips, port)
                )
                tried.update(answers)
        return replace(one, reach=tried)

    answers = each(list(seen.values()), try_others)
    for answer in answers:
        if isinstance(answer, VllmdeployError):
            raise answer
    return {one.name: one for one in answers if isinstance(one, Seen)}


def manifest_of(session: Session, seen: Mapping[str, Seen], place: ModelPlace) -> Manifest:
    """The head's word counts; where the head has none, that of the hosts that have it whole."""
    lead = session.lead.name
    whole = [one for one in seen.values() if _is_marked(one, place.name)]
    ordered = sorted(whole, key=lambda one: one.name != lead)
    if not ordered:
        raise UsageError(
            f"no host has a whole model {place.name} in {place.root}",
            hint=f"`vllmdeploy model download`, or `vllmdeploy model verify {place.name}` for a "
            "folder that was put there by hand",
        )
    if ordered[0].name == lead:
        return _read_manifest(session, ordered[0], place)
    manifests: list[Manifest] = []
    for answer in each(ordered, lambda one: _read_manifest(session, one, place)):
        if isinstance(answer, VllmdeployError):
            raise answer
        manifests.append(answer)
    found = {one.digest: seen.name for one, seen in zip(manifests, ordered, strict=True)}
    if len(found) > 1:
        names = ", ".join(sorted(found.values()))
        raise PreflightRefused(
            [f"hosts have different models named {place.name}: {names}"],
            hint=f"`vllmdeploy model remove {place.name}` where it is not the one you want",
        )
    return manifests[0]


def _is_marked(one: Seen, name: str) -> bool:
    model = one.store.model(name)
    return model is not None and model.marked


def _read_manifest(session: Session, one: Seen, place: ModelPlace) -> Manifest:
    command = one.member.access.of(model_files.read_manifest(place.folder))
    said = check(
        one.name, command, session.shells[one.name].run(command), doing="reading the manifest"
    )
    return parse(said.stdout, where=f"{one.name}:{place.manifest}")


def stores_asked(
    session: Session, members: Sequence[tuple[str, Access]], place: ModelPlace
) -> list[FoundStore | VllmdeployError]:
    """The model on these hosts as it is now."""

    def ask_again(one: tuple[str, Access]) -> FoundStore:
        name, way = one
        return ask_one(session.shells[name], model_files.look(place.root, place.name), way)

    return each(members, ask_again)
