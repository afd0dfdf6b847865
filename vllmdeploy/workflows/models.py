"""Models on every host of the fleet: look, verify, take over what is there by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.command import check
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import HostError, PreflightRefused, UsageError, VllmdeployError
from vllmdeploy.plan.models import Standing, State, hash_faults, standing
from vllmdeploy.plan.models_files import size_text
from vllmdeploy.tools import access, model_files, model_files_users
from vllmdeploy.tools.manifest import Manifest, ModelFile, parse
from vllmdeploy.tools.manifest_names import ModelPlace, place_of
from vllmdeploy.tools.model_files_found import FoundStore
from vllmdeploy.tools.model_files_tree import hub_cache, tree_faults
from vllmdeploy.workflows.session import Session

OnBytes = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class SeenHost:
    access: access.Access
    store: FoundStore


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenModels:
    """MODEL_PATH on every host that answers; the head's manifests are what all are held to."""

    root: str
    head: str
    hosts: Mapping[str, SeenHost]
    manifests: Mapping[str, Manifest] = field(default_factory=dict[str, Manifest])
    broken: Mapping[str, str] = field(default_factory=dict[str, str])
    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def names(self) -> tuple[str, ...]:
        found = (model.name for host in self.hosts.values() for model in host.store.models)
        return tuple(sorted(set(found)))

    def standing(self, host: str, name: str) -> Standing:
        return standing(self.hosts[host].store, name, self.manifests.get(name))

    def users(self, name: str) -> tuple[str, ...]:
        return model_files_users.users(f"{self.root}/{name}", self.used)

    def place(self, name: str) -> ModelPlace:
        return place_of(self.root, name)


def look(session: Session, name: str = "") -> SeenModels:
    """All models, or one. A host that does not answer is in the session's failures."""
    root = session.settings.model_path
    names = [host.name for host in session.fleet.hosts if host.name in session.shells]
    answers = each(names, lambda host: _look_at(session, host, root, name))
    hosts: dict[str, SeenHost] = {}
    for host, answer in zip(names, answers, strict=True):
        if isinstance(answer, HostError):
            session.failures.setdefault(host, answer)
        elif isinstance(answer, VllmdeployError):
            raise answer
        else:
            hosts[host] = answer
    head = session.lead.name
    if head not in hosts:
        return SeenModels(root=root, head=head, hosts=hosts)
    manifests, broken = _manifests(session, hosts[head], root)
    used = ask_one(
        session.shells[head],
        model_files_users.specs(hosts[head].access.layout.services),
        hosts[head].access,
    )
    return SeenModels(
        root=root, head=head, hosts=hosts, manifests=manifests, broken=broken, used=used
    )


def _look_at(session: Session, host: str, root: str, name: str) -> SeenHost:
    shell = session.shells[host]
    cluster = session.wanted.cluster
    rights = ask_one(shell, access.rights(cluster, session.sudo))
    way = access.decide(cluster, session.sudo, rights)
    return SeenHost(way, ask_one(shell, model_files.look(root, name), way))


def _manifests(
    session: Session, head: SeenHost, root: str
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Those of the head that can be read, and why the others cannot."""
    named = [model.name for model in head.store.models if model.digest and not model.incoming]
    shell = session.shells[session.lead.name]
    # One by one: together they could be more than what is kept of one command's output.
    texts = each(
        named,
        lambda name: ask_one(shell, _manifest_text(place_of(root, name)), head.access),
        at_once=4,
    )
    manifests: dict[str, Manifest] = {}
    broken: dict[str, str] = {}
    for name, text in zip(named, texts, strict=True):
        if isinstance(text, VllmdeployError):
            raise text
        try:
            manifests[name] = parse(text, where=f"{shell.host}:{place_of(root, name).manifest}")
        except UsageError as error:
            broken[name] = error.message
    return manifests, broken


def _manifest_text(place: ModelPlace) -> Fact[str]:
    return Fact(
        name=f"manifest of {place.name}",
        command=model_files.read_manifest(place.folder),
        parse=lambda result: result.stdout,
    )


def hashes_on(
    session: Session,
    host: SeenHost,
    name: str,
    folder: str,
    sizes: Mapping[str, int],
    on_bytes: OnBytes,
) -> dict[str, str]:
    """The sha256 of these files as the host itself computes them."""
    total, done = sum(sizes.values()), 0
    found: dict[str, str] = {}

    def on_line(line: str) -> None:
        nonlocal done
        answer = model_files.parse_hash(line)
        if answer and answer[0] in sizes:
            found[answer[0]] = answer[1]
            done += sizes[answer[0]]
            on_bytes(name, done, total)

    command = host.access.of(model_files.hashes(folder, tuple(sizes), total=total))
    result = session.shells[name].run(command, on_line=on_line)
    if result.timed_out:
        check(name, command, result, doing="computing the hashes of a model")
    return found


def verify_deep(
    session: Session, seen: SeenModels, name: str, on_bytes: OnBytes
) -> dict[str, Standing | VllmdeployError]:
    """Every hash on every host that has the model, at once; who fails is not READY any more."""
    wanted = seen.manifests[name]
    place = seen.place(name)
    sizes = {file.path: file.size for file in wanted.files}
    judged = (State.READY, State.CORRUPT, State.UNMARKED)
    there = [host for host in seen.hosts if seen.standing(host, name).state in judged]

    def one(host: str) -> Standing:
        before = seen.standing(host, name)
        seen_host = seen.hosts[host]
        found = hashes_on(session, seen_host, host, place.folder, sizes, on_bytes)
        faults = hash_faults(wanted, found)
        if not faults:
            return before
        unmark = seen_host.access.of(model_files.unmark(place))
        check(host, unmark, session.shells[host].run(unmark), doing=f"unmarking {name}")
        return Standing(State.CORRUPT, faults=faults)

    return dict(zip(there, each(there, one), strict=True))


def adopt(session: Session, seen: SeenModels, name: str, on_bytes: OnBytes) -> Manifest:
    """Take over a folder on the head that somebody filled by hand: its manifest is computed."""
    head = seen.hosts[seen.head]
    model = head.store.model(name)
    if model is None:
        raise UsageError(f"{seen.head}: {seen.root}/{name} is not there")
    place = seen.place(name)
    faults = tree_faults(model.tree)
    if faults:
        raise PreflightRefused([f"{seen.head}: {place.folder}: {fault}" for fault in faults])
    sizes = model.tree.sizes
    found = hashes_on(session, head, seen.head, place.folder, sizes, on_bytes)
    unread = sorted(set(sizes) - set(found))
    if unread:
        raise PreflightRefused([f"{seen.head}: {place.folder}/{path}: not read" for path in unread])
    known = hub_cache(model.tree.home)
    manifest = Manifest(
        source="huggingface" if known else "folder",
        repo=known[0] if known else "",
        commit=known[1] if known else "",
        files=tuple(ModelFile(path, size, found[path]) for path, size in sorted(sizes.items())),
    )
    steps = (
        model_files.write_manifest(place, manifest),
        model_files.mark_ready(place, manifest),
    )
    for command in steps:
        mine = head.access.of(command)
        check(seen.head, mine, session.shells[seen.head].run(mine), doing=f"taking over {name}")
    return manifest


def decide_remove(seen: SeenModels, name: str) -> Plan:
    """What would be deleted on every host; refused while a stored service needs it."""
    place, users = seen.place(name), seen.users(name)
    if users:
        raise PreflightRefused(
            [f"{name} is used by the service {user}" for user in users],
            hint=f"`vllmdeploy stop-service {users[0]}` first",
        )
    draft = Draft()
    for host, found in seen.hosts.items():
        parts = [part for part in found.store.models if part.name == name]
        if not parts:
            continue
        count = sum(len(part.tree.sizes) for part in parts)
        size = size_text(sum(part.tree.total for part in parts))
        draft.add(
            Step(
                host=host,
                verb="remove",
                subject=f"model {name}",
                cause=f"{count} files, {size}, in {seen.root}",
                action=Run(found.access.of(model_files.remove(place))),
                destructive=True,
            )
        )
    return draft.finished()
