"""A stand-in for NVIDIA's MPS programs that speaks their documented protocol, run for real.

`install(folder)` puts `nvidia-cuda-mps-control` and `nvidia-smi` into a folder for PATH. The
control daemon keeps its pid file and socket in CUDA_MPS_PIPE_DIRECTORY, writes control.log and
server.log, starts servers that are processes, and ends by itself when its folder is gone or after
two minutes, whatever a test does. `attach PID` and `fault` are ours: a CUDA program would do that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LIFETIME_S = 120
CARD = "GPU-5afe0000-0000-4000-8000-{:012x}"
CARDS = "cards.json"
PROGRAMS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "nvidia-smi")
_SERVER = "nvidia-cuda-mps-server"


def install(folder: Path, uuids: Sequence[str], *, memory_mib: int = 81_559) -> dict[str, str]:
    """The programs and the cards they speak of; returns the environment that uses them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(uuids, memory_mib=memory_mib).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def files(uuids: Sequence[str], *, memory_mib: int = 81_559) -> dict[str, str]:
    """What lies in the folder of the programs, by name."""
    cards = [{"uuid": one, "mode": "Default", "memory": memory_mib} for one in uuids]
    program = f"#!{sys.executable} -IS\n{Path(__file__).read_text()}"
    return {CARDS: json.dumps(cards), **dict.fromkeys(PROGRAMS, program)}


class Control:
    """The daemon's side of the protocol: a line in, a text out."""

    def __init__(self, pipe: Path, log: Path, cards: str, *, static: bool) -> None:
        self.pipe, self.log, self.cards, self.static = pipe, log, cards, static
        self.default = 100.0
        self.servers: dict[int, Mapping[str, object]] = {}
        self.clients: dict[int, list[int]] = {}
        self.faults: set[int] = set()
        self.partitions: list[str] = []
        self.ending = False

    def note(self, file: str, who: str, pid: int, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S.000")
        with (self.log / file).open("a") as out:
            out.write(f"[{stamp} {who} {pid}] {text}\n")

    def answer(self, line: str) -> str:
        self.note("control.log", "Control", os.getpid(), f"Cmd:{line}")
        name, *words = line.split()
        known = getattr(self, f"do_{name}", None)
        return f"Unknown command: {name}\n" if known is None else known(*words)

    def do_get_server_list(self) -> str:
        return "".join(f"{pid}\n" for pid in self.servers)

    def do_start_server(self, flag: str, uid: str) -> str:
        server = os.fork()
        if server == 0:
            if os.getuid() == 0 and int(uid):
                os.setuid(int(uid))
            os.execvp(_SERVER, [_SERVER])
        self.servers[server] = {"percentage": self.default}
        self.clients[server] = []
        self.note("control.log", "Control", os.getpid(), f"Starting new server {server}")
        self.note("server.log", "Server", server, "Active Threads Percentage set to 100.0")
        return ""

    def do_get_server_status(self, pid: str) -> str:
        return "FAULT\n" if int(pid) in self.faults else "ACTIVE\n"

    def do_get_client_list(self, pid: str) -> str:
        return "".join(f"{one}\n" for one in self.living(int(pid)))

    def living(self, server: int) -> list[int]:
        """A client that has ended is one no more."""
        return [one for one in self.clients.get(server, []) if Path(f"/proc/{one}").exists()]

    def do_get_active_thread_percentage(self, pid: str) -> str:
        return f"{self.servers[int(pid)]['percentage']}\n"

    def do_get_default_active_thread_percentage(self) -> str:
        return f"{self.default}\n"

    def do_set_default_active_thread_percentage(self, percent: str) -> str:
        self.default = float(percent)
        return f"{self.default}\n"

    def do_sm_partition(self, verb: str, card: str, chunks: str) -> str:
        if not self.static:
            return "Static partitioning is not enabled\n"
        name = f"{card}/{chr(65 + len(self.partitions))}{chunks}x=="
        self.partitions.append(name)
        return f"Partition {name} created\n"

    def do_lspart(self) -> str:
        return "".join(f"{one}\n" for one in self.partitions)

    def do_attach(self, pid: str) -> str:
        if not self.servers:
            self.do_start_server("-uid", str(os.getuid()))
        server = next(iter(self.servers))
        self.clients[server].append(int(pid))
        self.note("server.log", "Server", server, f"New client {pid} connected")
        return ""

    def do_fault(self) -> str:
        for server in self.servers:
            self.faults.add(server)
            client = self.clients[server][0]
            text = f"Client {client} encountered a fatal GPU error"
            self.note("server.log", "Server", server, text)
        return ""

    def do_shutdown_server(self, pid: str, *force: str) -> str:
        self.end(int(pid))
        return ""

    def do_quit(self) -> str:
        self.ending = True
        return ""

    def end(self, server: int) -> None:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        del self.servers[server]

    def serve(self, listening: socket.socket) -> None:
        """A connection at a time; `quit` ends it once no client is left, as in the real one."""
        deadline = time.monotonic() + LIFETIME_S
        listening.settimeout(0.1)
        while time.monotonic() < deadline and self.pipe.exists():
            if self.ending and not any(map(self.living, self.servers)):
                break
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection, connection.makefile("rw") as both:
                for line in both:
                    both.write(self.answer(line.strip()) if line.strip() else "")
                    both.write("\0")
                    both.flush()
        for server in list(self.servers):
            self.end(server)


def _socket_of(pipe: Path) -> Path:
    return pipe / "control"


def start_daemon(arguments: Sequence[str]) -> int:
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    log = Path(os.environ.get("CUDA_MPS_LOG_DIRECTORY", "/var/log/nvidia-mps"))
    pipe.mkdir(parents=True, exist_ok=True)
    log.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as tried:
        if tried.connect_ex(str(_socket_of(pipe))) == 0:
            sys.stdout.write("An instance of this daemon is already running\n")
            return 1
    _socket_of(pipe).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(_socket_of(pipe)))
    listening.listen(16)
    child = os.fork()
    if child:
        (pipe / "nvidia-cuda-mps-control.pid").write_text(f"{child}\n")
        return 0
    os.setsid()
    static = "-S" in arguments
    control = Control(pipe, log, os.environ.get("CUDA_VISIBLE_DEVICES", ""), static=static)
    me, where = os.getpid(), _socket_of(pipe)
    control.note("control.log", "Control", me, f"Starting control daemon using socket {where}")
    control.serve(listening)
    os._exit(0)


def ask_daemon() -> int:
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    with socket.socket(socket.AF_UNIX) as connection:
        if connection.connect_ex(str(_socket_of(pipe))):
            sys.stdout.write("Cannot find MPS control daemon process\n")
            return 1
        with connection.makefile("rw") as both:
            for line in sys.stdin:
                both.write(line.strip() + "\n")
                both.flush()
                answer = ""
                while not answer.endswith("\0"):
                    letter = both.read(1)
                    if not letter:
                        return 0
                    answer += letter
                sys.stdout.write(answer[:-1])
    return 0


def smi(arguments: Sequence[str]) -> int:
    state = Path(sys.argv[0]).with_name(CARDS)
    cards = json.loads(state.read_text())
    if "-c" in arguments:
        asked = arguments[arguments.index("-i") + 1]
        mode = arguments[arguments.index("-c") + 1].title()
        for card in cards:
            card["mode"] = mode if card["uuid"] == asked else card["mode"]
        state.write_text(json.dumps(cards))
        return 0
    query = next((one for one in arguments if one.startswith("--query-gpu=")), "")
    columns = query.partition("=")[2].split(",")
    if "noheader" not in " ".join(arguments):
        sys.stdout.write(", ".join(columns) + "\n")
    if not query:
        return 0
    for index, card in enumerate(cards):
        values = {
            "index": index,
            "uuid": card["uuid"],
            "name": "NVIDIA H100 80GB HBM3",
            "pci.bus_id": f"00000000:0{index}:00.0",
            "memory.total": card["memory"],
            "memory.used": 0,
            "utilization.gpu": 0,
            "temperature.gpu": 31,
            "compute_mode": card["mode"],
            "mig.mode.current": "Disabled",
            "driver_version": "590.44.01",
        }
        sys.stdout.write(", ".join(str(values[column]) for column in columns) + "\n")
    return 0


def ask(pipe: Path, words: str, environment: Mapping[str, str]) -> str:
    """What a test says to a daemon, as a CUDA program or an operator would."""
    done = subprocess.run(
        ["nvidia-cuda-mps-control"],
        input=f"{words}\n",
        env={**os.environ, **environment, "CUDA_MPS_PIPE_DIRECTORY": str(pipe)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout


def main() -> int:
    arguments = sys.argv[1:]
    if Path(sys.argv[0]).name == "nvidia-smi":
        return smi(arguments)
    if Path(sys.argv[0]).name == _SERVER:
        signal.alarm(LIFETIME_S)
        signal.pause()
    return start_daemon(arguments) if "-d" in arguments or "-f" in arguments else ask_daemon()


if __name__ == "__main__" and not sys.argv[0].endswith(".py"):
    sys.exit(main())
