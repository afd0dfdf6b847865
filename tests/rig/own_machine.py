"""A fleet of this machine alone, its nodes plain processes, with real or pretended engines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.plan.service_builders import CONFIG
from tests.rig.programs import RigError, until
from tests.support import fake_vllm
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT
from vllmdeploy.workflows.demo import MODEL, demo_files, engine_of

CARDS = 2
_FLAGS = ("--seed", "--max-model-len", "--max-num-seqs", "--enforce-eager", "--shutdown-timeout")
Done = subprocess.CompletedProcess[str]


@dataclass
class Machine:
    """Two cards' worth of Ray on this machine, and an operator's folder."""

    folder: Path
    python: Path
    models: Path
    cluster: str
    key: str = ""
    settings: dict[str, str] = field(default_factory=dict[str, str])

    def writes(self, **keys: str) -> None:
        engine = engine_of(self.folder)
        config = demo_files(self.folder, engine)
        lines = [
            line
            for line in config.read_text().splitlines()
            if line.partition("=")[0] not in ("ENGINE_PORTS", *keys)
        ]
        first = int(next(line for line in lines if line.startswith("API_PORT=")).split("=")[1])
        own = {
            "CLUSTER_NAME": self.cluster,
            "MODEL_PATH": str(self.models),
            "VLLM_PYTHON": str(self.python),
            "ENGINE_PORTS": f"{first + 300}-{first + 309}",
            **keys,
        }
        kept = [line for line in lines if line.partition("=")[0] not in own]
        self.settings = dict(line.split("=", 1) for line in kept) | own
        config.write_text("".join(f"{key}={value}\n" for key, value in self.settings.items()))
        (self.folder / "worker_nodes.txt").write_text(f"localhost head=yes ray_gpus={CARDS}\n")

    def runs(self, *argv: str, limit_s: float = 300) -> Done:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        program = (str(Path(sys.prefix, "bin/vllmdeploy")), *argv)
        with subprocess.Popen(
            program,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        ) as started:
            try:
                out, err = started.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired as late:
                # As Ctrl-C: it gives the fleet's lock back, so that what it left can be taken down.
                started.send_signal(signal.SIGINT)
                _, err = started.communicate(timeout=60)
                raise RigError(f"no end within {limit_s:g} s: {argv}\n{err}") from late
        return Done(program, started.returncode, out, err)

    def succeeds(self, *argv: str, limit_s: float = 300) -> str:
        done = self.runs(*argv, limit_s=limit_s)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("API key"):
                self.key = line.split()[-1]
        return done.stdout + done.stderr

    def goes(self) -> None:
        """Nothing of it stays on this machine."""
        self.succeeds("down", "--yes", "--forget")
        shutil.rmtree(Path(SYSTEM_STATE_ROOT, self.cluster))

    def asks(self, model: str) -> int:
        """The status of one request, 0 where there was no answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.settings['API_PORT']}/generate",
            json.dumps({"model": model, "prompt": "a", "max_tokens": 1}).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def pretended(folder: Path, cluster: str) -> Machine:
    """With an environment whose vLLM only pretends; Ray is real."""
    home = folder / "engine"
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", str(home)), check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    own = next(Path(path) for path in sys.path if (Path(path) / "ray").is_dir())
    (packages / "ours.pth").write_text(f"{own}\n")
    for file, text in {
        "vllm/__init__.py": "",
        "vllm/entrypoints/__init__.py": "",
        "vllm/entrypoints/cli/__init__.py": "",
        "vllm/entrypoints/cli/serve.py": "",
        "vllm/entrypoints/cli/main.py": Path(fake_vllm.__file__).read_text(),
        "vllm/envs.py": 'os.getenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "1")\n',
        "vllm/engine/arg_utils.py": "".join(f"add.add_argument({flag!r})\n" for flag in _FLAGS),
        "vllm-0.32.0.dist-info/METADATA": "Name: vllm\nVersion: 0.32.0\n",
    }.items():
        path = packages / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ray = home / "bin/ray"
    ray.write_text(f"#!{home}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    ray.chmod(0o755)
    model = folder / "models/m"
    model.mkdir(parents=True)
    (model / "config.json").write_text(CONFIG)
    made = Machine(folder, home / "bin/python", folder / "models", cluster)
    made.writes(EXTRA_VLLM_ARGS="--enforce-eager")
    return made


def real(folder: Path, checkout: Path, cluster: str) -> Machine:
    """With the engine and the model of the demo."""
    engine = engine_of(checkout)
    made = Machine(folder, engine.python, engine.models, cluster)
    made.writes(
        EXTRA_ENV="'VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1'",
        MAX_MODEL_LEN="256",
    )
    return made


REAL_MODEL = MODEL


class Load:
    """Clients that ask without a pause until they are told to stop."""

    def __init__(self, machine: Machine, model: str, clients: int) -> None:
        self.statuses: list[int] = []
        self._machine, self._model = machine, model
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._working = [self._pool.submit(self._work) for _ in range(clients)]

    def _work(self) -> None:
        while not self._stop.is_set():
            self.statuses.append(self._machine.asks(self._model))

    def ends(self, *, after: int, limit_s: float = 240) -> list[int]:
        """When so many requests were made."""
        try:
            until(f"{after} requests", lambda: len(self.statuses) >= after, limit_s=limit_s)
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True)
        return self.statuses
