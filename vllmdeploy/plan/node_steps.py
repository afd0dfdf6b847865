"""The steps by which one host's node comes to be as it should: made, started anew, or replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vllmdeploy.core.plan import Draft, Run, Step, Wait
from vllmdeploy.core.spec import NodeSpec
from vllmdeploy.plan.image_pull import add_pull
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.supervise import Made, Supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import files


@dataclass(frozen=True, slots=True)
class Payload:
    """What the plan carries to the hosts; neither is ever shown."""

    package: bytes
    token: str


@dataclass(frozen=True, slots=True)
class NodeSteps:
    """Where the steps of nodes are written, and what they carry. `hosts`: the whole group."""

    wanted: Wanted
    payload: Payload
    supervisor: Supervisor
    draft: Draft
    hosts: tuple[FoundHost, ...]

    def bring(
        self,
        member: Member,
        spec: NodeSpec,
        *,
        needs: tuple[str, ...],
        why_restart: Callable[[FoundNode], str],
    ) -> tuple[str, ...]:
        """The steps for one host's node; the last step's key, or nothing to do."""
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
        if not there.running:
            return self._start(member, there, f"it is {there.state}", (*needs, *secret))
        cause = why_restart(there) or ("the Ray token changed" if secret else "")
        return self._restart(member, there, cause, (*needs, *secret)) if cause else ()

    def _out_of_the_way(self, member: Member, spec: NodeSpec) -> tuple[str, ...]:
        """A node of ours in the other role: this host was head before, or worker."""
        return tuple(
            key
            for other in member.found.ours(self.wanted.cluster)
            if other.name != spec.name and other.role in ("ray-head", "ray-worker")
            for key in self._remove(member, other, f"{member.name} is a {spec.role} now")
        )

    def add(
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
        folder = self.add(
            member,
            "create",
            "secrets folder",
            "not found" if not have else "the head's token differs",
            Run(files.folders(layout.ray_secrets, mode="0700", owner=made.owner)),
        )
        write = files.write(layout.ray_token, token, mode="0600", owner=made.owner)
        cause = "differs from the head's" if have else "not found"
        return (self.add(member, "write", "Ray token", cause, Run(write), (folder,)),)

    def _create(
        self, member: Member, spec: NodeSpec, made: Made, cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        before = (*needs, *self._pull(member), *self._package(member))
        layout = member.layout
        folders = self.add(
            member,
            "create",
            "folders",
            cause,
            Run(files.folders(layout.services, *made.folders, owner=made.owner)),
        )
        return (
            self.add(
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
        return (add_pull(self.draft, member, self.hosts),)

    def _package(self, member: Member) -> tuple[str, ...]:
        sha = self.wanted.package
        if sha in member.found.packages:
            return ()
        path = f"{member.layout.package(sha)}/vllmdeploy.zip"
        step = Run(files.write(path, self.payload.package))
        return (self.add(member, "write", f"package {sha}", "not there", step),)

    def _remove(self, member: Member, node: FoundNode, cause: str) -> tuple[str, ...]:
        keys: tuple[str, ...] = ()
        verbs = ("stop", "remove")
        for verb, command in zip(verbs, self.supervisor.remove(node, member.layout), strict=False):
            keys = (self.add(member, verb, node.name, cause, Run(command), keys, destructive=True),)
        return keys

    def _start(
        self, member: Member, node: FoundNode, cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        command = self.supervisor.start(node, member.layout)
        return (self.add(member, "start", node.name, cause, Run(command), needs),)

    def _restart(
        self, member: Member, node: FoundNode, cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        commands = self.supervisor.restart(node, member.layout)
        verbs = ("restart",) if len(commands) == 1 else ("stop", "start")
        for verb, command in zip(verbs, commands, strict=True):
            needs = (
                self.add(member, verb, node.name, cause, Run(command), needs, destructive=True),
            )
        return needs
