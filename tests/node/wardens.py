"""Real wardens over real processes, for tests: started, asked, and always ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tests.rig.programs import until
from vllmdeploy.node import ctl, processes

GROUP_LIMIT_S = 30.0


@dataclass
class Node:
    """One warden and its folders."""

    folder: Path
    name: str = "node"
    program: subprocess.Popen[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def run(self) -> Path:
        return self.folder / self.name

    @property
    def logs(self) -> Path:
        return self.folder / f"{self.name}-logs"

    @property
    def services(self) -> Path:
        return self.folder / f"{self.name}-services"

    def argv(self, *options: str, child: tuple[str, ...]) -> tuple[str, ...]:
        return (
            *(sys.executable, "-m", "vllmdeploy.node.warden", "--name", self.name),
            *("--run", str(self.run), "--logs", str(self.logs)),
            *("--services", str(self.services), *options, "--", *child),
        )

    def start(self, *options: str, child: tuple[str, ...]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.name}.out").open("a") as out:
            self.program = subprocess.Popen(
                self.argv(*options, child=child),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                text=True,
                start_new_session=True,
            )
        self.reaches(lambda status: True)

    @property
    def said(self) -> str:
        return (self.folder / f"{self.name}.out").read_text()

    def ask(self, word: str) -> dict[str, Any]:
        answer = ctl.ask(self.run, word)
        return cast("dict[str, Any]", answer)

    def reaches(self, wanted: Callable[[dict[str, Any]], bool], limit_s: float = 30) -> Any:
        """The first status that is as wanted."""

        def look() -> dict[str, Any] | None:
            try:
                status = self.ask("status")
            except ctl.NoWarden:
                return None
            return status if wanted(status) else None

        try:
            return until("the wanted status", look, limit_s=limit_s)
        except Exception as error:
            raise AssertionError(f"{error}\n{self.said}") from error

    def child(self, state: str, name: str = "node", limit_s: float = 30) -> Any:
        """The child's report, once it is in this state."""

        def find(status: dict[str, Any]) -> Any:
            return status["ray"] if name == "ray" else status["engines"].get(name)

        status = self.reaches(lambda s: bool(find(s)) and find(s)["state"] == state, limit_s)
        return find(status)

    def spec(self, name: str, **fields: object) -> Path:
        self.services.mkdir(parents=True, exist_ok=True)
        path = self.services / f"{name}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"name": name, **fields}))
        fresh.replace(path)
        return path

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.program is not None
        if self.program.poll() is None:
            self.program.send_signal(number)
        return self.program.wait(GROUP_LIMIT_S)

    def left(self) -> list[int]:
        """Processes this node's children left, the warden itself aside."""
        return list(processes.leftovers(processes.everything(), str(self.run)))

    def clear(self) -> None:
        """Whatever a failed test left: nothing may outlive it."""
        if self.program is not None and self.program.poll() is None:
            self.program.kill()
            self.program.wait(GROUP_LIMIT_S)
        processes.kill(self.left())


def alive(pid: int) -> bool:
    found = processes.process(pid)
    return found is not None and not found.dead
