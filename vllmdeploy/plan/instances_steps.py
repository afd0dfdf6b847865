"""The steps by which instances start, are started anew, and end, each on its own host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.core.plan import Draft, Wait
from vllmdeploy.plan import service_steps
from vllmdeploy.plan.image_pull import add_pull
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.plan.instances_wanted import FoundInstances, node_name
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.supervise import Made, Supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import files
from vllmdeploy.tools.vllm_engine import START_LIMIT_S, parse_engine
from vllmdeploy.tools.vllm_services import Service

# What vLLM says once it has read its weights: from then on another may use the disk.
_LOADED = ("oading weights took", "odel loading took", "KV cache memory", "KV cache size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """Where steps for instances are written. `package` is what every host needs of us. `patient`:
    the plan ends when they answer, else when all is done that helps them."""

    draft: Draft
    wanted: Wanted
    supervisor: Supervisor
    found: FoundInstances
    package: bytes = field(repr=False)
    patient: bool = True

    def ground(self, member: Member, instance: str = "") -> Ground:
        """`instance`: the one whose node is asked; without it, the host's node of Ray."""
        node = node_name(self.wanted.cluster, instance) if instance else ""
        return Ground(
            draft=self.draft,
            wanted=self.wanted,
            supervisor=self.supervisor,
            head=member,
            instance=node,
        )

    @property
    def lead(self) -> Ground:
        return self.ground(self.found.member(self.found.lead))

    def node(self, instance: Service) -> FoundNode | None:
        """Its node, where its host has one."""
        name = node_name(self.wanted.cluster, instance.name)
        ours = self.found.member(instance.head).found.ours(self.wanted.cluster)
        return next((one for one in ours if one.name == name), None)


def bring_all(
    sites: Sites, wanted: Sequence[Instance], first: Mapping[str, tuple[str, ...]]
) -> Mapping[str, str]:
    """The steps for those that are not as wanted; by instance, the step that says it is ready.
    `first`: by host, the steps that each of its instances needs.

    On one card they begin one after another, because each measures what memory is left. On one
    host the next begins when the one before has read its weights, so that the disk serves one.
    """
    ready: dict[str, str] = {}
    on_host: dict[str, tuple[Instance, str]] = {}
    on_cards: dict[tuple[str, tuple[int, ...]], str] = {}
    for one in wanted:
        before = (*first.get(one.slot.host, ()), *_before(sites, one, on_host, on_cards))
        awaited = bring(sites, one, before)
        if awaited:
            ready[one.service.name] = awaited
            on_host[one.slot.host] = (one, f"{one.slot.host}: create {one.node.name}")
            if one.slot.cards:
                on_cards[one.slot.host, one.slot.cards] = awaited
    return ready


def _before(
    sites: Sites,
    one: Instance,
    on_host: Mapping[str, tuple[Instance, str]],
    on_cards: Mapping[tuple[str, tuple[int, ...]], str],
) -> tuple[str, ...]:
    same_cards = on_cards.get((one.slot.host, one.slot.cards))
    if same_cards:
        return (same_cards,)
    same_host = on_host.get(one.slot.host)
    if same_host is None:
        return ()
    previous, created = same_host
    known = {step.key for step in sites.draft.steps}
    needs = (created,) if created in known else ()
    return (_await_weights(sites, previous, needs),)


def _await_weights(sites: Sites, one: Instance, needs: tuple[str, ...]) -> str:
    """Never fails because of the instance: whether it can start at all is another step's matter."""
    ground = sites.ground(one.member, one.service.name)
    child = ground.instance

    def missing(result: Result) -> str | None:
        state = parse_engine(result, child)
        read = any(sign in line for line in state.last_lines for sign in _LOADED)
        return None if state.state == "running" or state.failures or read else state.words

    wait = Wait(command=ground.ctl("status"), missing=missing, limit_s=START_LIMIT_S)
    subject = f"weights of {one.service.name}"
    return ground.add("await", subject, "the next on this host reads its own then", wait, needs)


def bring(sites: Sites, one: Instance, needs: tuple[str, ...]) -> str:
    """What it lacks to be as wanted; the key of the step that says it answers, or nothing."""
    ground = sites.ground(one.member, one.service.name)
    made = sites.supervisor.make(sites.wanted, one.member, one.node)
    there = sites.node(one.service)
    state = sites.found.engines.get(one.service.name)
    written = _spec(sites, one)
    layout = one.member.layout
    cause = "its engine loads and answers a canary"
    if there is None:
        last = _create(sites, ground, one, made, "not found", (*needs, *written))
    elif there.fingerprint != made.fingerprint:
        gone = _remove_node(sites, one.service, "settings changed", (*needs, *written))
        last = _create(sites, ground, one, made, "settings changed", gone)
    elif not there.running:
        action = ground.run(sites.supervisor.start(there, layout))
        last = ground.add("start", one.node.name, f"it is {there.state}", action, needs)
    elif state and state.state == "crash-loop":
        last = _restart(sites, ground, there, state.words, needs)
    elif state and state.state == "running" and not written:
        return ""
    else:
        cause, last = state.words if state else "not seen yet", ""
    after = (last,) if last else (*needs, *written)
    if not sites.patient:
        return last
    return service_steps.await_answer(ground, one.service, cause, after, fresh=True)


def bring_anew(sites: Sites, one: Instance, needs: tuple[str, ...]) -> str:
    """In the place of one that has ended."""
    ground = sites.ground(one.member, one.service.name)
    made = sites.supervisor.make(sites.wanted, one.member, one.node)
    written = _spec(sites, one, needs)
    last = _create(sites, ground, one, made, "instances restart", (*needs, *written))
    cause = "its engine loads and answers a canary"
    return service_steps.await_answer(ground, one.service, cause, (last,), fresh=True)


def _spec(sites: Sites, one: Instance, needs: tuple[str, ...] = ()) -> tuple[str, ...]:
    """On the head, where every later plan looks for it."""
    content = one.file.content()
    kept = sites.found.stored.get(one.service.name)
    if kept and kept.content == content:
        return ()
    lead = sites.lead
    path = f"{lead.head.layout.instances}/{one.service.name}.json"
    cause = "changed" if kept else "not there"
    command = lead.run(files.write_open(path, content))
    return (lead.add("write", f"instance {one.service.name}", cause, command, needs),)


def _create(
    sites: Sites,
    ground: Ground,
    one: Instance,
    made: Made,
    cause: str,
    needs: tuple[str, ...],
) -> str:
    before = (*needs, *_pull(sites, one.member), *_package(sites, ground))
    make = ground.run(files.folders(*made.folders, owner=made.owner))
    folders = ground.add("create", f"folders of {one.service.name}", cause, make)
    hint = f"vllmdeploy instances logs {one.service.belongs_to}"
    command = ground.run(made.command)
    return ground.add("create", one.node.name, cause, command, (*before, folders), hint=hint)


def _restart(
    sites: Sites, ground: Ground, node: FoundNode, cause: str, needs: tuple[str, ...]
) -> str:
    commands = sites.supervisor.restart(node, ground.head.layout)
    verbs = ("restart",) if len(commands) == 1 else ("stop", "start")
    for verb, command in zip(verbs, commands, strict=True):
        key = ground.add(verb, node.name, cause, ground.run(command), needs, destructive=True)
        needs = (key,)
    return needs[0]


def _pull(sites: Sites, member: Member) -> tuple[str, ...]:
    if sites.wanted.runtime != "docker" or member.found.image is not None:
        return ()
    found, image = [one.found for one in sites.found.members], member.found.image_name
    # The name comes last where the pull was by digest.
    keys = (f"{member.name}: {verb} image {image}" for verb in ("tag", "pull"))
    there = next(filter(None, (_once(sites, key) for key in keys)), "")
    return (there or add_pull(sites.draft, member, found),)


def _package(sites: Sites, ground: Ground) -> tuple[str, ...]:
    sha = sites.wanted.package
    if sha in ground.head.found.packages:
        return ()
    key = _once(sites, f"{ground.head.name}: write package {sha}")
    if key:
        return (key,)
    path = f"{ground.head.layout.package(sha)}/{PACKAGE_FILE}"
    command = ground.run(files.write(path, sites.package))
    return (ground.add("write", f"package {sha}", "not there", command),)


def _once(sites: Sites, key: str) -> str:
    return key if any(step.key == key for step in sites.draft.steps) else ""


def end(
    sites: Sites, instance: Service, cause: str, needs: tuple[str, ...], *, forget: bool = True
) -> tuple[str, ...]:
    """Its requests end, then its node does; `forget`: its spec goes too."""
    there = sites.node(instance)
    member = sites.found.member(instance.head)
    if there and there.running:
        ground = sites.ground(member, instance.name)
        needs = (service_steps.drain(ground, instance, needs),)
    if there:
        needs = _remove_node(sites, instance, cause, needs)
    return (_forget(sites, instance, cause, needs),) if forget else needs


def _forget(sites: Sites, instance: Service, cause: str, needs: tuple[str, ...]) -> str:
    lead = sites.lead
    command = files.remove(f"{lead.head.layout.instances}/{instance.name}.json")
    subject = f"instance {instance.name}"
    return lead.add("remove", subject, cause, lead.run(command), needs, destructive=True)


def undo(sites: Sites, one: Instance, *, made: bool) -> None:
    """One that did not start leaves nothing behind. `made`: its node is there by now."""
    cause = "it did not start"
    needs: tuple[str, ...] = ()
    if made:
        node = FoundNode(
            name=one.node.name, id=one.node.name, role="instance", group="", running=True
        )
        needs = _ended(sites, one.member, node, cause, ())
    _forget(sites, one.service, cause, needs)


def _remove_node(
    sites: Sites, instance: Service, cause: str, needs: tuple[str, ...]
) -> tuple[str, ...]:
    there = sites.node(instance)
    member = sites.found.member(instance.head)
    return _ended(sites, member, there, cause, needs) if there else needs


def _ended(
    sites: Sites, member: Member, node: FoundNode, cause: str, needs: tuple[str, ...]
) -> tuple[str, ...]:
    ground = replace(sites.ground(member), instance=node.name)
    commands: tuple[Command, ...] = sites.supervisor.remove(node, member.layout)
    for verb, command in zip(("stop", "remove"), commands, strict=False):
        key = ground.add(verb, node.name, cause, ground.run(command), needs, destructive=True)
        needs = (key,)
    return needs
