"""PID 1 of a node: starts Ray and engines, watches them, restarts them, ends them in order."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vllmdeploy.node import door, processes, ray, report
from vllmdeploy.node.background import Background
from vllmdeploy.node.child import Surroundings
from vllmdeploy.node.logs import Echo, RotatedLog
from vllmdeploy.node.spec import (
    NAME,
    BadSpec,
    ChildSpec,
    HttpProbe,
    LineReady,
    TcpReady,
    http_probe,
)
from vllmdeploy.node.supervisor import Assignment, Supervisor
from vllmdeploy.node.table import Limits

EXIT_USAGE = 2
EXIT_TAKEN = 7
_SETTLE_S = 0.05  # changes that come together are written once


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python3 -m vllmdeploy.node.warden",
        description="Supervises what one node runs. What follows -- is the main child's command;"
        " without one, a head or worker runs engines only, and no Ray.",
    )
    made.add_argument("--name", required=True, help="this node's own name, unique on its host")
    made.add_argument(
        "--node", default="", help="its host, as spec files call it (default: --name)"
    )
    made.add_argument("--role", required=True, choices=("head", "worker", "instance"))
    made.add_argument("--run", required=True, type=Path, help="status.json, ctl.sock and the lock")
    made.add_argument("--logs", required=True, type=Path, help="one rotated log per child")
    made.add_argument("--services", type=Path, help="folder of engine spec files")
    made.add_argument(
        "--ray-address", default="", metavar="IP:PORT", help="default: from `ray start`"
    )
    made.add_argument("--expect-nodes", default="", metavar="A,B", help="names Ray must report")
    made.add_argument("--health-url", default="", help="role instance: its /health")
    made.add_argument("--metrics-url", default="", help="role instance: its /metrics")
    made.add_argument("--canary-url", default="", help="role instance: where one token is asked")
    made.add_argument("--canary-body", default="", metavar="JSON", help="the question")
    made.add_argument("--start-limit", type=float, default=180.0, metavar="S")
    made.add_argument("--stop-limit", type=float, default=60.0, metavar="S", help="all of it")
    made.add_argument(
        "--back-off", default="1,3,10,30", metavar="S,...", help="then, within 15 min, it gives up"
    )
    made.add_argument("--log-size-mb", type=float, default=20.0, metavar="MB")
    made.add_argument("--log-files", type=int, default=5, metavar="N")
    made.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    return made


def assignment(options: argparse.Namespace) -> Assignment:
    """What the command line asks for; ValueError says what is wrong with it."""
    command = tuple(options.command[1:] if options.command[:1] == ["--"] else options.command)
    if not command and options.role == "instance":
        raise ValueError("no command after --")
    if not NAME.fullmatch(options.name):
        raise ValueError(f"--name {options.name!r}: letters, digits, '.', '_' and '-' only")
    if options.log_files < 1 or min(options.stop_limit, options.log_size_mb) <= 0:
        raise ValueError("--log-files, --log-size-mb and --stop-limit must be more than 0")
    address = options.ray_address or ray.gcs_address(command)
    if options.role != "instance" and command and not address:
        raise ValueError("no Ray address: give --ray-address, or --node-ip-address / --address")
    gcs = ray.split_address(address) if options.role != "instance" and address else None
    return Assignment(
        name=options.name,
        node=options.node or options.name,
        role=options.role,
        main=_main_child(options, command, gcs) if command else None,
        services=options.services,
        gcs=gcs,
        expected_nodes=tuple(filter(None, options.expect_nodes.split(","))),
    )


def _main_child(
    options: argparse.Namespace, command: tuple[str, ...], gcs: tuple[str, int] | None
) -> ChildSpec:
    delays = tuple(map(float, options.back_off.split(",")))
    limits = Limits(delays=delays, start_s=options.start_limit, stop_s=ray.STOP_S)
    if options.role == "head" and gcs is not None:
        return ChildSpec(name="ray", argv=command, ready=TcpReady(*gcs), limits=limits)
    if options.role == "worker":
        return ChildSpec(name="ray", argv=command, ready=LineReady(ray.STARTED), limits=limits)
    return ChildSpec(
        name=options.name,
        argv=command,
        ready=_probe(options),
        limits=replace(limits, stop_s=options.stop_limit),
    )


def _probe(options: argparse.Namespace) -> HttpProbe | None:
    if not options.health_url:
        return None
    return http_probe(
        options.health_url,
        metrics_url=options.metrics_url,
        canary_url=options.canary_url,
        canary_body=options.canary_body,
    )


def take_lock(run: Path) -> int | None:
    """A lock that ends with this process; None when another warden holds it."""
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run / report.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def end_leftovers(run: Path) -> int:
    """An earlier warden of this folder was killed: what it left would hold ports and cards."""
    ended: set[int] = set()
    while left := processes.leftovers(processes.everything(), str(run)):
        processes.kill(left)
        ended.update(left)
        time.sleep(0.05)
    return len(ended)


class Warden:
    """Ties the supervisor to the outside: signals, the socket, the status file."""

    def __init__(self, options: argparse.Namespace, wanted: Assignment, run: Path) -> None:
        self._run = run
        self._stop_limit = float(options.stop_limit)
        self._say = Echo(sys.stdout.fileno())
        logs = options.logs.absolute()
        sizes = (int(options.log_size_mb * 1024 * 1024), options.log_files)
        self._log = RotatedLog(logs / "warden.log", size_limit=sizes[0], files=sizes[1])
        self._dirty = asyncio.Event()
        self._stop = asyncio.Event()
        self._problem = ""
        self._background = Background()
        around = Surroundings(
            run=str(run),
            logs=logs,
            log_size=sizes[0],
            log_files=sizes[1],
            env=dict(os.environ),
            echo=self._say,
            background=self._background,
            exits={},
            changed=self._dirty.set,
            tell=self._tell,
        )
        self._identity = _identity(wanted, run, logs)
        self._supervisor = Supervisor(wanted, around)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._supervisor.reap)
        loop.add_signal_handler(signal.SIGHUP, self._supervisor.retry)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._supervisor.reap()
        await self._background.guard(self._live())

    async def _live(self) -> None:
        listener = door.listen(Path(self._identity.socket))
        server = await door.serve(listener, self._answer)
        self._dirty.set()  # also where nothing is supervised yet, there is a status
        self._background.start(self._write_changes())
        self._tell(f"{self._identity.name} ({self._identity.role}), pid {os.getpid()}")
        await self._stop.wait()
        self._tell("stopping")
        await self._supervisor.stop(self._stop_limit)
        server.close()
        door.remove(self._identity.socket)
        self._write()
        self._tell("stopped")

    def _answer(self, asked: dict[str, object]) -> object:
        match asked.get("ask"):
            case "status":
                self._supervisor.look()
                return self._document()
            case "nodes":
                return self._supervisor.node_report()
            case "retry":
                self._supervisor.retry()
                return {"done": True}
            case "stop":
                self._stop.set()
                return {"done": True}
            case other:
                return {"error": f"cannot answer {other!r}"}

    def _document(self) -> dict[str, object]:
        return {
            "format": report.FORMAT,
            **asdict(self._identity),
            "problem": self._problem,
            **self._supervisor.report(),
        }

    async def _write_changes(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._write()
            await asyncio.sleep(_SETTLE_S)

    def _write(self) -> None:
        try:
            report.write(self._run, self._document())
            self._problem = ""
        except OSError as error:  # a full disk must not end what is being supervised
            self._problem = f"cannot write {report.STATUS_FILE}: {error.strerror or error}"
            self._tell(self._problem)

    def _tell(self, words: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {words}")
        self._say.write("warden", words)


def _identity(wanted: Assignment, run: Path, logs: Path) -> report.Identity:
    own = processes.process(os.getpid())
    return report.Identity(
        name=wanted.name,
        node=wanted.node,
        role=wanted.role,
        logs=str(logs),
        socket=str(report.socket_path(run)),
        pid=os.getpid(),
        pid_started=own.started if own else 0,
        boot_id=processes.boot_id(),
        started_at=time.time(),
    )


async def _run(options: argparse.Namespace, wanted: Assignment, run: Path) -> None:
    await Warden(options, wanted, run).run()


def main(argv: Sequence[str] | None = None) -> int:
    out = sys.stderr.write
    options = parser().parse_args(argv)
    try:
        wanted = assignment(options)
    except (ValueError, BadSpec) as error:
        out(f"warden: {error}\n")
        return EXIT_USAGE
    run = options.run.absolute()
    try:
        lock = take_lock(run)
    except OSError as error:
        out(f"warden: cannot use {run}: {error.strerror or error}\n")
        return EXIT_USAGE
    if lock is None:
        holder = report.read(run) or {}
        out(f"warden: {run} is held by another warden (pid {holder.get('pid', 'unknown')})\n")
        return EXIT_TAKEN
    if os.getpid() != 1:
        processes.adopt_orphans()
        end_leftovers(run)
    asyncio.run(_run(options, wanted, run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
