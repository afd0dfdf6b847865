"""Keeps a fresh copy of what Ray itself says about its nodes, so that asking costs nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from vllmdeploy.node import output, placement, processes, ray
from vllmdeploy.node.probe import ask

_EVERY_S = 1.5
_LIMIT_S = 5.0
_HELPER_SILENT_S = 15.0  # it imports Ray first, which takes seconds on a busy machine
_PACKAGE_ROOT = str(Path(__file__).parents[2])  # a folder, or the zip this package travels as


class NodeWatch:
    def __init__(
        self,
        argv: tuple[str, ...],
        address: str,
        env: Mapping[str, str],
        exits: dict[int, Callable[[int], None]],
        life: Callable[[], int],
    ) -> None:
        """`life` numbers the runs of Ray, 0 while it is down: an answer counts for one run only."""
        self._argv = argv
        self._address = address
        self._env = env
        self._exits = exits
        self._life = life
        self._seen_in = 0
        self._nodes: tuple[ray.RayNode, ...] = ()
        self._source = ""
        self._seen_at = 0.0
        self._problem = "not asked yet"
        self._helper = 0
        self._heard_at = 0.0

    @property
    def alive(self) -> frozenset[str]:
        return frozenset(node.name for node in self._nodes if node.alive and self._valid)

    @property
    def _valid(self) -> bool:
        return self._seen_in != 0 and self._seen_in == self._life()

    def report(self) -> dict[str, object]:
        if not self._valid:
            problem = self._problem if self._life() else "Ray is not running"
            return {"nodes": [], "source": "", "age_s": None, "problem": problem}
        return {
            "nodes": [asdict(node) for node in self._nodes],
            "source": self._source,
            "age_s": round(time.monotonic() - self._seen_at, 3),
            "problem": self._problem,
        }

    async def follow(self) -> None:
        """The dashboard is asked, where there is one: it knows most. It comes up well after the
        cluster and may fall silent under load; then the GCS is asked at once."""
        url = ray.dashboard_url(self._argv)
        while True:
            if not self._life() or (url and await self._ask_dashboard(url)):
                if self._helper:
                    processes.kill((self._helper,))
            elif not self._helper:
                self._start_helper()
            elif time.monotonic() - self._heard_at > _HELPER_SILENT_S:
                processes.kill((self._helper,))
            await asyncio.sleep(_EVERY_S)

    async def cards_by_driver(self) -> Mapping[int, Mapping[str, int]]:
        """Where the cards are that a process of this node got of Ray; nothing without a dashboard,
        or while it does not answer."""
        url = ray.dashboard_url(self._argv)
        if not url or not self._valid:
            return {}
        headers = self._authorization()
        jobs = await ask(f"{url}{placement.JOBS}", limit_s=_LIMIT_S, headers=headers)
        groups = await ask(f"{url}{placement.GROUPS}", limit_s=_LIMIT_S, headers=headers)
        names = {node.id: node.name for node in self._nodes}
        return placement.cards_by_driver(jobs.body, groups.body, names)

    async def _ask_dashboard(self, url: str) -> bool:
        headers = self._authorization()
        life = self._life()
        state = await ask(f"{url}/api/v0/nodes?limit=10000", limit_s=_LIMIT_S, headers=headers)
        usage = await ask(f"{url}/api/cluster_status", limit_s=_LIMIT_S, headers=headers)
        if state.status != 200 or usage.status != 200:
            said = state.detail or f"{state.status}, {usage.status}"
            self._failed(f"the dashboard at {url} does not answer: {said}")
            return False
        try:
            nodes = ray.parse_nodes(state.body, usage.body)
        except ValueError as error:
            self._failed(f"the dashboard at {url} answered something else: {error}")
            return False
        if life == self._life():  # else it spoke of a cluster that has ended meanwhile
            self._learn(nodes, "dashboard")
        return True

    def _learn(self, nodes: tuple[ray.RayNode, ...], source: str) -> None:
        self._nodes, self._source, self._seen_at = nodes, source, time.monotonic()
        self._seen_in = self._life()
        self._problem = ""

    def _failed(self, problem: str) -> None:
        if not self._helper:
            self._problem = problem

    def _authorization(self) -> dict[str, str]:
        path = self._env.get("RAY_AUTH_TOKEN_PATH", "")
        if self._env.get("RAY_AUTH_MODE") != "token" or not path:
            return {}
        try:
            token = Path(path).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            self._failed(f"the Ray token cannot be read: {error}")
            return {}
        return {"Authorization": f"Bearer {token}"}

    def _start_helper(self) -> None:
        known = self._env.get("PYTHONPATH", "")
        path = os.pathsep.join(filter(None, (_PACKAGE_ROOT, known)))
        interpreter = ray.interpreter(self._env.get("PATH", os.defpath)) or sys.executable
        argv = (interpreter, "-m", "vllmdeploy.node.gcsview", self._address)
        try:
            started = processes.spawn(argv, {**self._env, "PYTHONPATH": path})
        except OSError as error:
            self._problem = f"cannot start {interpreter}: {error.strerror or error}"
            return
        self._helper, self._heard_at = started.pid, time.monotonic()
        self._exits[started.pid] = lambda code: self._helper_ended(started, code)
        output.follow(started, self._hear)

    def _helper_ended(self, started: subprocess.Popen[bytes], code: int) -> None:
        started.returncode = code
        self._helper = 0

    def _hear(self, line: str) -> None:
        self._heard_at = time.monotonic()
        try:
            self._learn(ray.parse_gcs_nodes(line), "gcs")
        except ValueError:  # Ray's own log lines come through the same pipe
            if line.strip():
                self._problem = f"asking the GCS: {line.strip()[:300]}"
