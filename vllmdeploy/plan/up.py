"""From what is wanted and what was found to the steps that bring a fleet's Ray nodes up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.plan import Draft, Plan, Wait
from vllmdeploy.errors import NotHealthy, PreflightRefused
from vllmdeploy.plan import preflight
from vllmdeploy.plan.group import GroupPlan
from vllmdeploy.plan.node import Member, node_spec
from vllmdeploy.plan.node_steps import NodeSteps, Payload
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.plan.supervise import Supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import ray, warden

# A node that Ray has not seen for this long, with a warden that thinks all is well, is started
# anew; before that it is given time.
_LOST_AFTER_S = 120
_LOOK = "vllmdeploy logs, vllmdeploy status"


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
    for group in groups.values():
        for note in group.notes:
            draft.note(note)
        hosts = tuple(member.found for member in group.members)
        steps = NodeSteps(wanted, payload, supervisor, draft, hosts)
        _Bringing(group.members, steps).write()
    return draft.finished()


def plan_worker(wanted: Wanted, member: Member, payload: Payload, supervisor: Supervisor) -> Plan:
    """One worker alone, on its own host: the head is elsewhere and not ours to touch."""
    draft = Draft()
    steps = NodeSteps(wanted, payload, supervisor, draft, (member.found,))
    _Bringing((member,), steps).write_worker()
    return draft.finished()


@dataclass(slots=True)
class _Bringing:
    """The writing of one group's part of the plan."""

    members: tuple[Member, ...]
    steps: NodeSteps

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
            for node in member.found.ours(self.steps.wanted.cluster)
        ]
        return max(generations, default=0) + 1

    def _node(
        self, member: Member, *, needs: tuple[str, ...], head_changed: bool
    ) -> tuple[str, ...]:
        """The steps for one host's node; the last step's key, or nothing to do."""
        spec = node_spec(self.steps.wanted, member, generation=self._generation)

        def why_restart(there: FoundNode) -> str:
            return self._why_restart(member, there, head_changed=head_changed)

        return self.steps.bring(member, spec, needs=needs, why_restart=why_restart)

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

    def _head_ready(self, head: Member, needs: tuple[str, ...]) -> tuple[str, ...]:
        """The head's own warden says when Ray accepts workers, well before its dashboard is up."""
        return (self._own_word(head, "Ray head", "workers join a head that answers", needs),)

    def _own_word(self, member: Member, subject: str, cause: str, needs: tuple[str, ...]) -> str:
        """Wait for what a node's own warden says of its Ray."""
        name = preflight.node_name(self.steps.wanted, member.found)
        wait = Wait(
            command=self.steps.supervisor.ctl(
                name, member.layout, self.steps.wanted.package, "status"
            ),
            missing=_ray_missing(member.name),
            limit_s=self.steps.wanted.patience_s,
            explain=(self._last_words(member),),
        )
        return self.steps.add(member, "await", subject, cause, wait, needs, hint=_LOOK)

    def _all_there(self, head: Member, needs: tuple[str, ...]) -> str:
        count = len(self.members)
        subject = f"Ray cluster of {count} host{'s' if count > 1 else ''}"
        name = preflight.node_name(self.steps.wanted, head.found)
        wait = Wait(
            command=self.steps.supervisor.ctl(
                name, head.layout, self.steps.wanted.package, "nodes"
            ),
            missing=_missing(self._expected()),
            limit_s=self.steps.wanted.patience_s,
            explain=tuple(self._last_words(member) for member in self.members),
        )
        return self.steps.add(
            head, "await", subject, "all hosts and all cards", wait, needs, hint=_LOOK
        )

    def _ctl(self, member: Member, word: str) -> Command:
        name = preflight.node_name(self.steps.wanted, member.found)
        return self.steps.supervisor.ctl(name, member.layout, self.steps.wanted.package, word)

    def _last_words(self, member: Member) -> tuple[str, Command]:
        name = preflight.node_name(self.steps.wanted, member.found)
        command = self.steps.supervisor.logs(name, member.layout, tail=12)
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
