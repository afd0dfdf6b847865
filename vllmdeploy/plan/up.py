"""From what is wanted and what was found to the steps that bring a fleet's Ray nodes up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.plan import Draft, Plan, Run, Step, Wait
from vllmdeploy.core.spec import NodeSpec
from vllmdeploy.errors import NotHealthy, PreflightRefused
from vllmdeploy.plan import preflight
from vllmdeploy.plan.group import GroupPlan
from vllmdeploy.plan.node import Member, node_spec
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.plan.supervise import Made, Supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import files, images, ray, warden

# A node that Ray has not seen for this long, with a warden that thinks all is well, is started
# anew; before that it is given time.
_LOST_AFTER_S = 120
_LOOK = "vllmdeploy logs, vllmdeploy status"


@dataclass(frozen=True, slots=True)
class Payload:
    """What the plan carries to the hosts; neither is ever shown."""

    package: bytes
    token: str


def plan_up(
    wanted: Wanted,
    groups: Mapping[str, GroupPlan],
    payload: Payload,
    supervisor: Supervisor,
) -> Plan:
    """Every reason to refuse is raised at once; otherwise the steps, empty where all is well."""
    reasons = [reason for group in groups.values() for reason in group.refusals]
    if reasons:
        raise PreflightRefused(reasons)
    draft = Draft()
    for name, group in groups.items():
        for note in group.notes:
            draft.note(note)
        _Bringing(wanted, name, group.members, payload, supervisor, draft).write()
    return draft.finished()


def plan_pulls(wanted: Wanted, groups: Mapping[str, GroupPlan]) -> Plan:
    """Images that hosts lack. They come first and alone: what is inside them decides the rest."""
    draft = Draft()
    for group in groups.values():
        for member in group.members:
            if wanted.runtime == "docker" and member.found.image is None and not group.refusals:
                add_pull(draft, member)
    return draft.finished()


def add_pull(draft: Draft, member: Member) -> str:
    image = member.found.image_name
    command = member.found.access.of(images.pull(image))
    return draft.add(Step(member.name, "pull", f"image {image}", "not there", Run(command)))


def plan_worker(wanted: Wanted, member: Member, payload: Payload, supervisor: Supervisor) -> Plan:
    """One worker alone, on its own host: the head is elsewhere and not ours to touch."""
    draft = Draft()
    bringing = _Bringing(wanted, member.found.host.group, (member,), payload, supervisor, draft)
    bringing.write_worker()
    return draft.finished()


@dataclass(slots=True)
class _Bringing:
    """The writing of one group's part of the plan."""

    wanted: Wanted
    group: str
    members: tuple[Member, ...]
    payload: Payload
    supervisor: Supervisor
    draft: Draft

    def write(self) -> None:
        if self.members[0].executor == "mp":
            self._write_without_ray()
            return
        head, *workers = self.members
        made = self._node(head, needs=(), head_changed=False)
        head_ready = self._head_ready(head, made) if made else ()
        joined = [
            key
            for worker in workers
            for key in self._node(worker, needs=head_ready, head_changed=bool(made))
        ]
        if made or joined or self._reported_missing():
            self._all_there(head, (*made, *head_ready, *joined))

    def _write_without_ray(self) -> None:
        """No node waits for another: each runs what its own services folder says."""
        for member in self.members:
            made = self._node(member, needs=(), head_changed=False)
            if made:
                self._own_word(member, "node", "it runs engines", made)

    def write_worker(self) -> None:
        (worker,) = self.members
        made = self._node(worker, needs=(), head_changed=False)
        if made and worker.executor == "mp":
            self._own_word(worker, "node", "it runs engines", made)
        elif made:
            self._own_word(worker, "Ray worker", f"it joins {worker.head.ip}", made)

    @property
    def _generation(self) -> int:
        generations = [
            node.generation
            for member in self.members
            for node in member.found.ours(self.wanted.cluster)
        ]
        return max(generations, default=0) + 1

    def _node(
        self, member: Member, *, needs: tuple[str, ...], head_changed: bool
    ) -> tuple[str, ...]:
        """The steps for one host's node; the last step's key, or nothing to do."""
        spec = node_spec(self.wanted, member, generation=self._generation)
        made = self.supervisor.make(self.wanted, member, spec)
        needs = (*needs, *self._out_of_the_way(member, spec))
        ours = member.found.ours(self.wanted.cluster)
        there = next((node for node in ours if node.name == spec.name), None)
        secret = self._secret(member, made)
        if there is None:
            return self._create(member, spec, made, "not found", (*needs, *secret))
        if there.fingerprint != made.fingerprint:
            removed = self._remove(member, there, "settings changed")
            return self._create(member, spec, made, "settings changed", (*needs, *removed, *secret))
        cause = self._why_restart(member, there, head_changed=head_changed)
        if not there.running:
            return self._start(member, there, f"it is {there.state}", (*needs, *secret))
        if secret:
            cause = cause or "the Ray token changed"
        return self._restart(member, there, cause, (*needs, *secret)) if cause else ()

    def _out_of_the_way(self, member: Member, spec: NodeSpec) -> tuple[str, ...]:
        """A node of ours in the other role: this host was head before, or worker."""
        return tuple(
            key
            for other in member.found.ours(self.wanted.cluster)
            if other.name != spec.name and other.role in ("ray-head", "ray-worker")
            for key in self._remove(member, other, f"{member.name} is a {spec.role} now")
        )

    def _why_restart(self, member: Member, there: FoundNode, *, head_changed: bool) -> str:
        warden = member.found.wardens.get(there.name)
        if warden is not None and warden.state == "crash-loop":
            return f"its warden gave up: {warden.reason or 'crash-loop'}"
        if head_changed:
            return "the head starts anew"
        lost = any(line.startswith(f"{member.name} ") for line in self._reported_missing())
        settled = warden is not None and warden.since_s > _LOST_AFTER_S
        return "Ray does not report it" if lost and settled else ""

    def _reported_missing(self) -> tuple[str, ...]:
        """What Ray itself lacks; nothing is known to be missing where no head was running."""
        seen = self.members[0].found.ray
        if seen is None or self.members[0].executor == "mp":
            return ()
        return ray.still_missing(self._expected(), seen)

    def _expected(self) -> tuple[ray.ExpectedNode, ...]:
        return tuple(
            ray.ExpectedNode(
                name=member.name,
                ip=member.place.ip,
                cards=member.share.declared,
                resource=member.accelerator.ray_resource,
            )
            for member in self.members
        )

    def _add(
        self,
        member: Member,
        verb: str,
        subject: str,
        cause: str,
        action: Run | Wait,
        needs: tuple[str, ...] = (),
        *,
        destructive: bool = False,
        hint: str = "",
    ) -> str:
        elevated = replace(action, command=member.found.access.of(action.command))
        return self.draft.add(
            Step(
                host=member.name,
                verb=verb,
                subject=subject,
                cause=cause,
                action=elevated,
                needs=tuple(dict.fromkeys(needs)),
                destructive=destructive,
                hint=hint,
            )
        )

    def _secret(self, member: Member, made: Made) -> tuple[str, ...]:
        if not member.token:
            return ()
        layout, token = member.layout, self.payload.token.encode()
        have = member.found.secrets.get("ray/ray_token", "")
        if have == files.digest(token):
            return ()
        folder = self._add(
            member,
            "create",
            "secrets folder",
            "not found" if not have else "the head's token differs",
            Run(files.folders(layout.ray_secrets, mode="0700", owner=made.owner)),
        )
        write = files.write(layout.ray_token, token, mode="0600", owner=made.owner)
        cause = "differs from the head's" if have else "not found"
        return (self._add(member, "write", "Ray token", cause, Run(write), (folder,)),)

    def _create(
        self, member: Member, spec: NodeSpec, made: Made, cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        before = (*needs, *self._pull(member), *self._package(member))
        layout = member.layout
        folders = self._add(
            member,
            "create",
            "folders",
            cause,
            Run(files.folders(layout.services, *made.folders, owner=made.owner)),
        )
        return (
            self._add(
                member,
                "create",
                spec.name,
                cause,
                Run(made.command),
                (*before, folders),
                hint=f"vllmdeploy logs {member.name}",
            ),
        )

    def _pull(self, member: Member) -> tuple[str, ...]:
        if self.wanted.runtime != "docker" or member.found.image is not None:
            return ()
        return (add_pull(self.draft, member),)

    def _package(self, member: Member) -> tuple[str, ...]:
        sha = self.wanted.package
        if sha in member.found.packages:
            return ()
        path = f"{member.layout.package(sha)}/vllmdeploy.zip"
        step = Run(files.write(path, self.payload.package))
        return (self._add(member, "write", f"package {sha}", "not there", step),)

    def _remove(self, member: Member, node: FoundNode, cause: str) -> tuple[str, ...]:
        keys: tuple[str, ...] = ()
        verbs = ("stop", "remove")
        for verb, command in zip(verbs, self.supervisor.remove(node, member.layout), strict=False):
            keys = (
                self._add(member, verb, node.name, cause, Run(command), keys, destructive=True),
            )
        return keys

    def _start(
        self, member: Member, node: FoundNode, cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        command = self.supervisor.start(node, member.layout)
        return (self._add(member, "start", node.name, cause, Run(command), needs),)

    def _restart(
        self, member: Member, node: FoundNode, cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        commands = self.supervisor.restart(node, member.layout)
        verbs = ("restart",) if len(commands) == 1 else ("stop", "start")
        for verb, command in zip(verbs, commands, strict=True):
            needs = (
                self._add(member, verb, node.name, cause, Run(command), needs, destructive=True),
            )
        return needs

    def _head_ready(self, head: Member, needs: tuple[str, ...]) -> tuple[str, ...]:
        """The head's own warden says when Ray accepts workers, well before its dashboard is up."""
        return (self._own_word(head, "Ray head", "workers join a head that answers", needs),)

    def _own_word(self, member: Member, subject: str, cause: str, needs: tuple[str, ...]) -> str:
        """Wait for what a node's own warden says of its Ray."""
        name = preflight.node_name(self.wanted, member.found)
        wait = Wait(
            command=self.supervisor.ctl(name, member.layout, self.wanted.package, "status"),
            missing=_ray_missing(member.name),
            limit_s=self.wanted.patience_s,
            explain=(self._last_words(member),),
        )
        return self._add(member, "await", subject, cause, wait, needs, hint=_LOOK)

    def _all_there(self, head: Member, needs: tuple[str, ...]) -> str:
        count = len(self.members)
        subject = f"Ray cluster of {count} host{'s' if count > 1 else ''}"
        name = preflight.node_name(self.wanted, head.found)
        wait = Wait(
            command=self.supervisor.ctl(name, head.layout, self.wanted.package, "nodes"),
            missing=_missing(self._expected()),
            limit_s=self.wanted.patience_s,
            explain=tuple(self._last_words(member) for member in self.members),
        )
        return self._add(head, "await", subject, "all hosts and all cards", wait, needs, hint=_LOOK)

    def _last_words(self, member: Member) -> tuple[str, Command]:
        name = preflight.node_name(self.wanted, member.found)
        command = self.supervisor.logs(name, member.layout, tail=12)
        return (member.name, member.found.access.of(command.within(15)))


def _ray_missing(host: str) -> Callable[[Result], str | None]:
    """What a node's Ray still lacks; one whose warden gave it up is not waited for any longer."""

    def missing(result: Result) -> str | None:
        lacking = warden.ray_missing(result)
        if result.ok and lacking and lacking.startswith("crash-loop"):
            raise NotHealthy(
                f"{host}: Ray does not start: {lacking}", hint=f"vllmdeploy logs {host}"
            )
        return lacking

    return missing


def _missing(expected: tuple[ray.ExpectedNode, ...]) -> Callable[[Result], str | None]:
    def missing(result: Result) -> str | None:
        seen = ray.parse_cluster(result)
        if seen.problem:
            return seen.problem
        return "; ".join(ray.still_missing(expected, seen)) or None

    return missing
