"""What runs inside a Ray actor: one engine as a child process; the standard library alone.

Ray sends the code of this module and of core.causes to its nodes, where this package need not be
installed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllmdeploy.core.causes import named

_LOOK_EVERY_S = 0.5
_STOP_S = 15.0
_LAST_LINES = 15
_LOG_READ = 1 << 20
# Ends the engine's whole session when its standard input closes, which it does however the actor
# that holds the other end dies. Ray kills the children of an actor that it ends, so the guard is a
# child's child; the child between only hands on how it ended. The engine's folder goes with it
# where nobody is left to read its log.
_GUARD = """
import os, shutil, signal, subprocess, sys, threading, time
guard = os.fork()
if guard:
    status = os.waitstatus_to_exitcode(os.waitpid(guard, 0)[1])
    os._exit(status if status >= 0 else 128 - status)
folder, *argv = sys.argv[1:]
alone = threading.Event()
engine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)

def end(number):
    try:
        os.killpg(engine.pid, number)
    except ProcessLookupError:
        pass

def watch():
    while os.read(0, 1):
        pass
    alone.set()
    end(signal.SIGTERM)
    time.sleep(10)
    end(signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
status = engine.wait()
end(signal.SIGKILL)
if alone.is_set():
    shutil.rmtree(folder, ignore_errors=True)
os._exit(status if status >= 0 else 128 - status)
"""


class EngineWorker:
    """`start`, then `ended` waits; `stop` at any time, from another thread of the actor."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.mkdtemp(prefix="vllmdeploy-batch-")
        self._log = Path(self._folder, "engine.log")

    def own_ip(self) -> str:
        """The address by which the other nodes of the cluster reach this one."""
        ray: Any = importlib.import_module("ray")
        return str(ray.util.get_node_ip_address())

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str], ip: str, ready_s: float
    ) -> tuple[str, int]:
        """Where it listens, once it is well; `{ip}` and `{port}` in `argv` are filled in."""
        port = _free_port(ip)
        words = [word.format(ip=ip, port=port) for word in argv]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-c", _GUARD, self._folder, sys.executable, *words),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_inherited() | dict(environment),
            )
        until = time.monotonic() + ready_s
        while not _well(ip, port):
            if self._process.poll() is not None:
                raise RuntimeError(f"the engine ended before it was well: {self._last_words()}")
            if time.monotonic() > until:
                words_now = self._last_words()
                self.stop()
                raise RuntimeError(f"the engine was not well in {ready_s:g} s: {words_now}")
            time.sleep(_LOOK_EVERY_S)
        return ip, port

    def ended(self) -> str:
        """Waits for its end, and says how it came."""
        if self._process is None:
            return "the engine was never started"
        status = self._process.wait()
        return f"the engine ended with {status}: {self._last_words()}"

    def stop(self) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
        self._log.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(self._folder).rmdir()

    def _last_words(self) -> str:
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _LOG_READ))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return "(no output)"
        return last_words(text)


def last_words(log: str) -> str:
    """Its first line says the cause where the log names one; the log's end is below it."""
    lines = [line for line in log.splitlines() if line.strip()]
    if not lines:
        return "(no output)"
    cause = next((error for line in lines if (error := named(line))), lines[-1].strip())
    return "\n".join((cause, *(f"  {line}" for line in lines[-_LAST_LINES:] if line != cause)))


def _inherited() -> dict[str, str]:
    """Ray allows its actors one thread each, by this variable; engines find their own number."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def _free_port(ip: str) -> int:
    """Somebody may take it before the engine does; then the engine ends and is started again."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        port: int = probe.getsockname()[1]
        return port


def _well(ip: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{ip}:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
