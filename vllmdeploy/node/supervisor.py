"""All children of one warden: Ray first, engines beside it, started and stopped in order."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.node import folder, processes
from vllmdeploy.node.child import Child, Surroundings
from vllmdeploy.node.folder import Wanted
from vllmdeploy.node.link import Link
from vllmdeploy.node.nodes import NodeWatch
from vllmdeploy.node.probe import tcp_problem
from vllmdeploy.node.ranks import Rank
from vllmdeploy.node.spec import ChildSpec
from vllmdeploy.node.table import Phase, Retry

_FOLDER_EVERY_S = 0.5
_PLACEMENT_EVERY_S = 2.0
_PLACEMENT_TRIES = 15
_TCP_LIMIT_S = 2.0
_REFUSALS = 3  # at half a second each; a GCS that refuses is gone, a slow one only times out
_RAY_RESERVE_S = 17.0  # of the time to stop, kept for Ray after the engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What this node is to run. Without `main` it has no Ray, only engines."""

    name: str
    node: str  # the host it stands for
    role: str
    main: ChildSpec | None
    services: Path | None = None
    gcs: tuple[str, int] | None = None  # where Ray is, for a head and its workers
    expected_nodes: tuple[str, ...] = ()


class Supervisor:
    def __init__(self, assignment: Assignment, around: Surroundings) -> None:
        self.assignment = assignment
        self._around = around
        self._nodes = self._node_watch()
        self._wanted = Wanted()
        self._engines: dict[str, Child] = {}
        self._links: dict[str, Link] = {}
        self._refusals = 0
        self.stopping = False
        main = assignment.main
        self.main = Child(main, around, self._main_needs, main=True) if main else None
        if self._nodes is not None:
            around.background.start(self._nodes.follow())
            around.background.start(self._follow_placements(self._nodes))
        if assignment.services is not None:
            around.background.start(self._follow_folder(assignment.services))

    def reap(self) -> None:
        """Every process that ended: ours are told about, adopted orphans only buried."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            told = self._around.exits.pop(pid, None)
            if told is not None:
                told(os.waitstatus_to_exitcode(status))

    def look(self) -> None:
        """Whoever asks has often just written a file: it need not wait for the next look."""
        if self.assignment.services is not None and not self.stopping:
            self._reconcile(self.assignment.services)

    def retry(self) -> None:
        for child in self._children():
            child.handle(Retry())

    async def stop(self, within_s: float) -> None:
        """Engines drain first, then Ray ends, then whatever is left is killed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        self.stopping = True
        self._around.changed()
        engines = tuple(self._engines.values())
        for engine in engines:
            engine.stop(max(1.0, within_s - (_RAY_RESERVE_S if self.main else 0.0)))
        for engine in engines:
            await engine.stopped.wait()
        for link in self._links.values():
            link.close()
        if self.main is not None:
            self.main.stop(max(1.0, end - loop.time() - 2.0))
            await self.main.stopped.wait()
        while left := self._descendants():
            processes.kill(left)
            await asyncio.sleep(0.05)

    def report(self) -> dict[str, object]:
        engines = {name: self._engine_report(name) for name in sorted(self._engines)}
        main = self.main.report() if self.main else None
        is_ray = self.assignment.role != "instance"
        if not is_ray and self.main and main:
            engines[self.main.spec.name] = main
        missing = self._missing(self.assignment.expected_nodes)
        return {
            "state": self._state(),
            "reason": self._reason(missing),
            "ray": main if is_ray else None,
            "engines": engines,
            "bad_specs": dict(self._wanted.problems),
            "expected_nodes": list(self.assignment.expected_nodes),
            "missing_nodes": missing,
        }

    def node_report(self) -> dict[str, object]:
        if self._nodes is None:
            return {"nodes": [], "source": "", "age_s": None, "problem": "not a Ray head"}
        return self._nodes.report()

    def _engine_report(self, name: str) -> dict[str, object]:
        link = self._links.get(name)
        ranks = {"ranks": link.report()} if link else {}
        return {**self._engines[name].report(), **ranks}

    def _children(self) -> tuple[Child, ...]:
        return (*((self.main,) if self.main else ()), *self._engines.values())

    def _state(self) -> str:
        phases = [child.life.phase for child in self._children()]
        if self.stopping:
            last = phases[:1] if self.main else phases
            return "stopped" if all(phase == Phase.STOPPED for phase in last) else "stopping"
        main = self.main.life if self.main else None
        if main and main.phase in (Phase.WAITING, Phase.STARTING) and not main.failures:
            return "starting"
        return "running" if all(phase == Phase.RUNNING for phase in phases) else "degraded"

    def _reason(self, missing: list[str]) -> str:
        words = [
            f"{child.spec.name} is {child.life.phase.value}: {child.life.reason}"
            for child in self._children()
            if child.life.phase != Phase.RUNNING and child.life.reason
        ]
        if missing and self._ray_runs():
            words.append(f"nodes that Ray does not report: {', '.join(missing)}")
        return "; ".join(words)

    def _missing(self, wanted: tuple[str, ...]) -> list[str]:
        alive = self._nodes.alive if self._nodes is not None else frozenset[str]()
        return [name for name in wanted if name not in alive]

    def _node_watch(self) -> NodeWatch | None:
        assignment, around = self.assignment, self._around
        if assignment.role != "head" or assignment.gcs is None or assignment.main is None:
            return None
        host, port = assignment.gcs
        argv = assignment.main.argv
        return NodeWatch(argv, f"{host}:{port}", around.env, around.exits, self._ray_life)

    def _ray_life(self) -> int:
        return self.main.life.spawned if self.main and self._ray_runs() else 0

    def _ray_runs(self) -> bool:
        return self.main is not None and self.main.life.phase == Phase.RUNNING

    async def _main_needs(self, up: bool) -> str:
        """A worker started before its head accepts may never join; without a head it is lost."""
        if self.assignment.role != "worker" or self.assignment.gcs is None:
            return ""
        host, port = self.assignment.gcs
        problem = await tcp_problem(host, port, limit_s=_TCP_LIMIT_S)
        if not problem:
            self._refusals = 0
            return ""
        words = f"waiting for the Ray head at {host}:{port} ({problem})"
        if not up:
            return words
        self._refusals = self._refusals + 1 if problem == "connection refused" else 0
        return words if self._refusals >= _REFUSALS else ""

    def _engine_needs(self, spec: ChildSpec, link: Link | None) -> Callable[[bool], Awaitable[str]]:
        async def lacking(up: bool) -> str:
            if link is not None:
                return link.lacking(up)
            if spec.needs_ray and not self._ray_runs():
                phase = (
                    f"which is {self.main.life.phase.value}" if self.main else "which is not here"
                )
                return f"waiting for Ray, {phase}"
            wanted = spec.needs_nodes or self.assignment.expected_nodes
            missing = self._missing(wanted) if spec.needs_ray and not up else []
            return f"waiting for Ray nodes: {', '.join(missing)}" if missing else ""

        return lacking

    async def _follow_folder(self, services: Path) -> None:
        while not self.stopping:
            self._reconcile(services)
            await asyncio.sleep(_FOLDER_EVERY_S)

    def _reconcile(self, services: Path) -> None:
        before = self._wanted
        self._wanted = folder.read(services, self.assignment.node, before)
        if self._wanted.problems != before.problems:
            self._around.changed()
        for name, child in tuple(self._engines.items()):
            if child.life.phase == Phase.STOPPED:
                child.close()
                del self._engines[name]
                if link := self._links.pop(name, None):
                    link.close()
                self._around.changed()
            elif self._wanted.specs.get(name) != child.spec and not child.life.stop_asked:
                child.stop(child.spec.limits.stop_s)
        for name, spec in self._wanted.specs.items():
            if name not in self._engines:
                self._engines[name] = self._engine(spec)
                self._around.changed()

    def _engine(self, spec: ChildSpec) -> Child:
        link = Link(spec.name, spec.ranks, self._around.background) if spec.ranks else None
        child = Child(spec, self._around, self._engine_needs(spec, link), main=False)
        if link is not None:
            link.speaks_for(lambda: _as_rank(child))
            self._links[spec.name] = link
        return child

    async def _follow_placements(self, nodes: NodeWatch) -> None:
        """Asked until it is known, once for each start: ranks stay where they are until they end.
        An engine that asked Ray for no cards has no place."""
        asked: Counter[int] = Counter()
        while True:
            await asyncio.sleep(_PLACEMENT_EVERY_S)
            unknown = [one for one in self._engines.values() if _to_be_placed(one, asked)]
            if not unknown:
                continue
            found = await nodes.cards_by_driver()
            for child in unknown:
                asked[child.pid] += 1
                child.placement = next(
                    (found[pid] for pid in child.members() if pid in found), child.placement
                )
                self._around.changed()

    def _descendants(self) -> tuple[int, ...]:
        return processes.members(
            processes.everything(), warden=os.getpid(), leader=0, others=(), claims=lambda _: True
        )


def _to_be_placed(child: Child, asked: Mapping[int, int]) -> bool:
    known = bool(child.placement) or asked.get(child.pid, 0) >= _PLACEMENT_TRIES
    return child.spec.needs_ray and child.life.phase == Phase.RUNNING and not known


def _as_rank(child: Child) -> tuple[Rank, int]:
    """What other ranks' wardens are told of it, and how many times it was started."""
    return child.as_rank(), child.life.spawned
