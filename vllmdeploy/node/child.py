"""One supervised child: carries out what the table decides and tells it what happened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllmdeploy.core.causes import FirstOfBurst
from vllmdeploy.core.spec import GENERATION_VARIABLE
from vllmdeploy.node import output, processes, ray, watching
from vllmdeploy.node.background import Background
from vllmdeploy.node.logs import Echo, RotatedLog
from vllmdeploy.node.ranks import Rank
from vllmdeploy.node.spec import ChildSpec, LineReady
from vllmdeploy.node.table import (
    Action,
    Cleared,
    Due,
    Event,
    Exited,
    Life,
    Needs,
    Phase,
    Ready,
    SpawnFailed,
    Stop,
    decide,
    exit_words,
)

_UP = (Phase.STARTING, Phase.RUNNING)
_KEPT_LINES = 20
_NEEDS_EVERY_S = 0.5
_CLEAR_EVERY_S = 0.05
_CLEAR_PATIENCE_S = 10.0

NeedsCheck = Callable[[bool], Awaitable[str]]


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What all children of one warden share."""

    run: str
    logs: Path
    log_size: int
    log_files: int
    env: Mapping[str, str]
    echo: Echo
    background: Background
    exits: dict[int, Callable[[int], None]]  # live pids and whom to tell when one is reaped
    changed: Callable[[], None]
    tell: Callable[[str], None]


class Child:
    def __init__(
        self, spec: ChildSpec, around: Surroundings, needs: NeedsCheck, *, main: bool
    ) -> None:
        self.spec = spec
        self.life = Life(limits=spec.limits)
        self.pid = 0
        self.stopped = asyncio.Event()
        self._around = around
        self._needs = needs
        self._main = main
        self._since = time.time()
        self._took: float | None = None
        self._last_exit: dict[str, object] | None = None
        self._last_failure: dict[str, object] | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._causes = FirstOfBurst()
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._drain: Callable[[], None] = lambda: None
        self.placement: Mapping[str, int] = {}
        """Cards by host, once Ray has said where they are."""
        self._log = RotatedLog(
            around.logs / f"{spec.name}.log", size_limit=around.log_size, files=around.log_files
        )
        around.background.start(self._follow_needs())

    def handle(self, event: Event) -> None:
        before = self.life
        now = asyncio.get_running_loop().time()
        self.life, actions = decide(before, event, now)
        if self.life == before and not actions:
            return
        if self.life.phase != before.phase:
            if self.life.phase == Phase.RUNNING:
                self._took = time.time() - self._since
            self._since = time.time()
            reason = f" ({self.life.reason})" if self.life.reason else ""
            self._around.tell(f"{self.spec.name}: {self.life.phase.value}{reason}")
        if self.life.phase == Phase.STOPPED:
            self.stopped.set()
        if self.life.deadline != before.deadline:
            self._arm()
        for action in actions:
            self._act(action)
        self._around.changed()

    def stop(self, within_s: float) -> None:
        """Stop it, in less than its own limit where the whole warden has to be gone sooner."""
        limits = self.life.limits
        self.life = replace(
            self.life, limits=replace(limits, stop_s=max(0.1, min(limits.stop_s, within_s)))
        )
        self.handle(Stop())

    def close(self) -> None:
        self._log.close()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.life.deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self.life.deadline, self.handle, Due())

    def _act(self, action: Action) -> None:
        match action:
            case Action.SPAWN:
                self._spawn()
            case Action.TERMINATE:
                processes.kill((self.pid,), signal.SIGTERM)
            case Action.CLEAR:
                if self._watch is not None:
                    self._watch.cancel()
                self._around.background.start(self._clear())

    def _spawn(self) -> None:
        spec, around = self.spec, self._around
        marks = {processes.RUN_MARK: around.run, processes.CHILD_MARK: spec.name}
        env = {**around.env, **spec.env, **marks}
        self._lines.clear()
        self._causes = FirstOfBurst()
        self.placement = {}
        try:
            argv = ray.command(spec.argv, env.get("PATH", os.defpath))
            started = processes.spawn(argv, env)
        except ray.RayMissing as error:
            self.handle(SpawnFailed(str(error), final=True))
            return
        except OSError as error:
            reason = f"cannot start {spec.argv[0]}: {error.strerror or error}"
            final = isinstance(error, (FileNotFoundError, PermissionError))
            self.handle(SpawnFailed(reason, final=final))
            return
        self.pid = started.pid
        around.exits[self.pid] = lambda code: self._ended(started, code)
        self._drain = output.follow(started, self._say)
        self._watch = around.background.start(
            watching.watch(spec.ready, self.handle, lambda: self.life.phase in _UP)
        )

    def _ended(self, started: subprocess.Popen[bytes], code: int) -> None:
        started.returncode = code  # reaped by the warden, behind the object's back
        self._last_exit = {"code": code, "words": exit_words(code), "at": time.time()}
        self.handle(Exited(code))

    def _say(self, line: str) -> None:
        self._lines.append(line)
        self._causes.feed(line, time.monotonic())
        self._log.write(line)
        self._around.echo.write(self.spec.name, line)
        ready = self.spec.ready
        if isinstance(ready, LineReady) and ready.text in line:
            self.handle(Ready())

    async def _follow_needs(self) -> None:
        while self.life.phase != Phase.STOPPED:
            self.handle(Needs(await self._needs(self.life.phase in _UP)))
            await asyncio.sleep(_NEEDS_EVERY_S)

    async def _clear(self) -> None:
        loop = asyncio.get_running_loop()
        patience = loop.time() + _CLEAR_PATIENCE_S
        reason = self.life.reason
        while left := self.members():
            processes.kill(left)
            if loop.time() > patience:
                words = f"{reason}; processes that do not end: {', '.join(map(str, left))}"
                self.life = replace(self.life, reason=words)
                self._around.changed()
            await asyncio.sleep(_CLEAR_EVERY_S)
        self.pid = 0
        self._drain()
        if self.life.failed:
            lines = self._telling_lines()
            self._last_failure = {"reason": reason, "at": time.time(), "last_lines": lines}
        # Asked once more, now: whether its need died with it decides whether it is to blame.
        self.handle(Needs(await self._needs(False)))
        self.handle(Cleared())

    def members(self) -> tuple[int, ...]:
        return processes.members(
            processes.everything(),
            warden=os.getpid(),
            leader=self.pid,
            others=(pid for pid in self._around.exits if pid != self.pid),
            claims=self._claims,
        )

    def _claims(self, pid: int) -> bool:
        child = processes.mark(pid, processes.CHILD_MARK)
        # Ray's workers rewrite their title over their environment: an orphan without a readable
        # mark is Ray's.
        return child == self.spec.name or (self._main and child is None)

    def as_rank(self) -> Rank:
        """What wardens of the same engine's other ranks have to know."""
        life = self.life
        code = (self._last_exit or {}).get("code")
        return Rank(
            state=life.phase.value,
            reason=life.reason,
            failed=life.failed,
            failures=len(life.failures),
            exit_code=code if isinstance(code, int) else None,
            lines=tuple(self._telling_lines()) if life.failures else (),
        )

    def _telling_lines(self) -> list[str]:
        """Its last lines, and before them the one that says why, where that is further up."""
        cause = self._causes.at_end(time.monotonic())
        return [cause, *self._lines] if cause and cause not in self._lines else list(self._lines)

    def report(self) -> dict[str, object]:
        life = self.life
        failure = self._last_failure or {}
        lines = list(self._lines) or failure.get("last_lines", [])
        down = life.deadline if life.phase == Phase.BACKING_OFF else None
        wait = None if down is None else time.time() + down - asyncio.get_running_loop().time()
        return {
            "state": life.phase.value,
            "reason": life.reason,
            "pid": self.pid or None,
            "since": self._since,
            "took_s": self._took,
            "placement": dict(self.placement),
            "generation": self.spec.env.get(GENERATION_VARIABLE, ""),
            "restarts": life.restarts,
            "failures": len(life.failures),
            "next_try_at": wait,
            "last_exit": self._last_exit,
            "last_failure": self._last_failure,
            "last_lines": lines,
            "argv": list(self.spec.argv),
            "log": str(self._around.logs / f"{self.spec.name}.log"),
            "log_problem": self._log.problem,
        }
