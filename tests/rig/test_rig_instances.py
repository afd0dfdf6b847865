"""Instances outside Ray on this machine, without Docker: real wardens, a real gateway."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.plan.service_builders import CONFIG
from tests.rig import fake_vllm
from tests.rig.service_engine import need_engine
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT
from vllmdeploy.workflows.demo import MODEL, engine_of

CHECKOUT = Path(__file__).parents[2]


@dataclass
class Machine:
    folder: Path
    cluster: str
    ports: tuple[int, ...]
    api: int

    def runs(self, *words: str, limit_s: float = 900) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.prefix, "bin/vllmdeploy"))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        return subprocess.run(
            (program, *words),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            cwd=self.folder,
            env=environment,
        )

    def succeeds(self, *words: str) -> str:
        done = self.runs(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self, word: str = "list") -> dict[str, str]:
        shown = json.loads(self.runs("instances", word, "--json").stdout)
        return {one["name"]: one["state"] for one in shown["instances"]}

    def ask(self, key: str) -> dict[str, Any]:
        body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api}/generate",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            shown: dict[str, Any] = json.loads(answer.read())
        return shown

    def engine(self, name: str) -> dict[str, Any]:
        """What the warden of an instance says of it."""
        node = f"{self.cluster}-instance-{name}"
        path = Path(SYSTEM_STATE_ROOT, self.cluster, "run", node, "status.json")
        shown: dict[str, Any] = json.loads(path.read_text())["engines"][node]
        return shown


def free_ports() -> list[int]:
    """Five of a block of this process's own, below what kernels hand out: nobody comes between."""
    first = 28000 + os.getpid() % 400 * 10
    found: list[int] = []
    for port in range(first, first + 10):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found[:5]


@contextmanager
def machine(folder: Path, python: Path, models: Path, **keys: str) -> Generator[Machine]:
    api, *ports = free_ports()
    made = Machine(folder, f"rig-instances-{os.getpid()}", tuple(ports), api)
    settings = {
        "CLUSTER_NAME": made.cluster,
        "RUNTIME": "process",
        "ACCELERATOR": "cpu",
        "MODEL_PATH": str(models),
        "API_HOST": "127.0.0.1",
        "API_PORT": str(api),
        "VLLM_PYTHON": str(python),
        **keys,
    }
    lines = (f"{key}='{value}'\n" for key, value in settings.items())
    (folder / "config.env").write_text("".join(lines))
    (folder / "worker_nodes.txt").write_text("localhost head=yes\n")
    try:
        yield made
    finally:
        made.runs("unlock", "--yes")  # of a run that was ended for its length
        made.succeeds("down", "--forget", "--yes")
        listed = subprocess.run(("ps", "-eo", "args"), capture_output=True, text=True, check=True)
        assert f"/{made.cluster}/" not in listed.stdout
        subprocess.run(("rm", "-rf", f"{SYSTEM_STATE_ROOT}/{made.cluster}"), check=True)


@pytest.fixture
def pretending(tmp_path: Path) -> Generator[Machine]:
    models = tmp_path / "models"
    (models / "m").mkdir(parents=True)
    (models / "m/config.json").write_text(CONFIG)
    with machine(tmp_path, fake_vllm.interpreter(tmp_path), models) as made:
        yield made


def start(made: Machine, model: str, *words: str) -> str:
    """Two of them; the API key that is shown once."""
    first, second, *_ = made.ports
    shown = made.succeeds(
        *("instances", "start", model, "--count", "2", "--ports", f"{first},{second}", "--yes"),
        *words,
    )
    found = re.search(r"API key .*: (\S+)", shown)
    assert found, shown
    return found[1]


def until_again(made: Machine, name: str, killed: int, limit_s: float) -> None:
    """The warden has started another one, and it answers."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        now = made.engine(name)
        if now["state"] == "running" and now["pid"] != killed:
            return
        time.sleep(0.2)
    raise AssertionError(made.engine(name))


def test_two_instances_live_and_die_apart(pretending: Machine) -> None:
    made = pretending
    key = start(made, "m")
    assert made.states("check") == {"m-1": "answers", "m-2": "answers"}
    assert made.ask(key)["text"] == " Paris"

    killed = int(made.engine("m-1")["pid"])
    os.kill(killed, signal.SIGKILL)
    assert [made.ask(key)["text"] for _ in range(8)] == [" Paris"] * 8
    until_again(made, "m-1", killed, 60)

    dying = made.runs(
        *("instances", "start", "m", "--name", "bad", "--count", "1"),
        *("--ports", str(made.ports[2]), "--yes", "--", "--die", "1"),
    )
    assert dying.returncode == 5
    assert "instance bad-1 does not start" in dying.stderr
    assert "ValueError: no room for a cache" in dying.stderr
    assert made.states() == {"m-1": "running", "m-2": "running"}

    with socket.create_server(("127.0.0.1", made.ports[3])):
        taken = made.runs(
            *("instances", "start", "m", "--name", "c", "--count", "1"),
            *("--ports", str(made.ports[3]), "--yes"),
        )
    assert taken.returncode == 6
    assert f"port {made.ports[3]} is taken by" in taken.stderr
    assert f"(pid {os.getpid()}) (not ended: it is not ours)" in taken.stderr

    made.succeeds("instances", "restart", "m", "--number", "2", "--yes")
    assert "m-2 | " in made.succeeds("instances", "logs", "m", "--number", "2", "--tail", "3")
    made.succeeds("instances", "stop", "m", "--number", "1", "--yes")
    assert made.states() == {"m-2": "running"}
    assert made.ask(key)["instance"] == "m-2"


def test_up_brings_back_what_does_not_run_and_status_says_what_that_is(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "m").mkdir(parents=True)
    (models / "m/config.json").write_text(CONFIG)
    python = fake_vllm.interpreter(tmp_path)
    with machine(tmp_path, python, models, EXECUTOR="mp") as made:
        key = start(made, "m")
        first = made.engine("m-1")["pid"]
        assert made.succeeds("up", "--yes") == ""
        assert made.engine("m-1")["pid"] == first
        shown = json.loads(made.succeeds("status", "--json"))
        assert [(one["name"], one["state"]) for one in shown["instances"]] == [
            ("m-1", "running"),
            ("m-2", "running"),
        ]

        made.succeeds("down", "--yes")
        gone = made.succeeds("status")
        assert f"m-2       localhost  -      http://127.0.0.1:{made.ports[1]}  absent" in gone
        assert "`vllmdeploy instances restart m --number 2` brings it back" in gone
        assert "localhost  absent  0         it is not there; `vllmdeploy up` makes it" in gone
        assert "create rig-instances-" in made.succeeds("up", "--dry-run")

        made.succeeds("up", "--yes")
        assert made.states("check") == {"m-1": "answers", "m-2": "answers"}
        assert made.ask(key)["text"] == " Paris"
        well = json.loads(made.succeeds("status", "--json"))
        assert (well["healthy"], [one["state"] for one in well["gateways"]]) == (True, ["ready"])
        assert "nothing to do" in made.runs("up", "--yes").stderr


@pytest.mark.long
def test_two_real_engines_answer_and_a_killed_one_comes_back(tmp_path: Path) -> None:
    need_engine()
    engine = engine_of(CHECKOUT)
    with machine(
        tmp_path,
        engine.python,
        engine.models,
        EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1",
        EXTRA_VLLM_ARGS="--enforce-eager",
        MAX_MODEL_LEN="2048",
    ) as made:
        key = start(made, MODEL)
        assert made.states("check") == {f"{MODEL}-1": "answers", f"{MODEL}-2": "answers"}
        assert "Paris" in made.ask(key)["text"]
        killed = int(made.engine(f"{MODEL}-1")["pid"])
        os.kill(killed, signal.SIGKILL)
        assert all("Paris" in made.ask(key)["text"] for _ in range(4))
        until_again(made, f"{MODEL}-1", killed, 300)
        assert made.states("check") == {f"{MODEL}-1": "answers", f"{MODEL}-2": "answers"}
