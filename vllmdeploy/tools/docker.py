"""Docker and its containers: the commands we give it, and how its answers read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import count, fields, json_line, json_object, strings
from vllmdeploy.core.spec import ContainerSpec, Mount
from vllmdeploy.errors import last_line

OLDEST_ENGINE = (20, 10)
_LOG_OPTIONS = ("--log-driver", "json-file", "--log-opt", "max-size=50m", "--log-opt", "max-file=3")
_ULIMITS = (
    *("--ulimit", "memlock=-1:-1"),
    *("--ulimit", "stack=67108864"),
    *("--ulimit", "nofile=1048576:1048576"),
)


def run(spec: ContainerSpec) -> Command:
    """`docker run` for a container that shares the host's network and survives reboots."""
    return Command(
        (
            *("docker", "run", "--detach", "--name", spec.name),
            *("--restart", "unless-stopped", "--network", "host"),
            *(("--shm-size", spec.shm_size) if spec.shm_size else ()),
            *(("--stop-timeout", str(spec.stop_s)) if spec.stop_s else ()),
            *_ULIMITS,
            *_LOG_OPTIONS,
            # SELinux: without relabelling the model folder, which may be shared or huge.
            *("--security-opt", "label=disable", "--security-opt", "no-new-privileges"),
            *_labels(spec.labels),
            *_environment(spec.environment),
            *_mounts(spec.mounts),
            *spec.arguments,
            *(("--entrypoint", spec.entrypoint) if spec.entrypoint else ()),
            spec.image,
            *spec.command,
        ),
        limit_s=120,
        root=True,
    )


def _labels(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part for key, value in labels.items() for part in ("--label", f"{key}={value}"))


def _environment(environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part for key, value in environment.items() for part in ("-e", f"{key}={value}"))


def _mounts(mounts: tuple[Mount, ...]) -> tuple[str, ...]:
    return tuple(
        part
        for mount in mounts
        for part in ("-v", f"{mount.source}:{mount.target}{'' if mount.writable else ':ro'}")
    )


def start(name: str) -> Command:
    return Command(("docker", "start", name), root=True)


def restart(name: str, *, stop_s: int) -> Command:
    return Command(("docker", "restart", "-t", str(stop_s), name), limit_s=stop_s + 60, root=True)


def stop(name: str, *, stop_s: int) -> Command:
    return Command(("docker", "stop", "-t", str(stop_s), name), limit_s=stop_s + 60, root=True)


def remove(container_id: str) -> Command:
    """By id, not by name: between looking and doing, a name may come to mean something else."""
    return Command(("docker", "rm", "--force", "--volumes", container_id), limit_s=120, root=True)


def execute(name: str, *argv: str) -> Command:
    return Command(("docker", "exec", name, *argv), limit_s=30, root=True)


def once(image: str, folder: str, arguments: Sequence[str], argv: Sequence[str]) -> Command:
    """One program of an image that only reads one folder of the host, and leaves nothing."""
    program, *rest = argv
    return Command(
        (
            *("docker", "run", "--rm", "--network", "none", "--security-opt", "label=disable"),
            *arguments,
            *("-v", f"{folder}:{folder}:ro", "--entrypoint", program, image, *rest),
        ),
        limit_s=60,
        root=True,
    )


def logs(name: str, *, tail: int | None = None, follow: bool = False) -> Command:
    return Command(
        (
            *("docker", "logs", "--timestamps"),
            *(("--tail", str(tail)) if tail is not None else ()),
            *(("--follow",) if follow else ()),
            name,
        ),
        root=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine of a host; `problem` says why it cannot be used, worded for a person."""

    version: str = ""
    arch: str = ""
    problem: str = ""


# The components' names tell a Docker client that talks to podman's socket.
ENGINE_FORMAT = (
    '{"version":{{json .Server.Version}},"arch":{{json .Server.Arch}},'
    '"parts":{{json .Server.Components}}}'
)
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?!\d)", re.ASCII)


def _parse_engine(result: Result) -> Engine:
    said = result.output
    problem = _engine_problem(result, said)
    if problem:
        return Engine(problem=problem)
    shown = json_line(result.stdout) or {}
    version, arch = str(shown.get("version", "")), str(shown.get("arch", ""))
    numbers = _VERSION.match(version)
    if numbers is None:
        return Engine(problem=f"Docker's version is not readable: {last_line(said)}")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_ENGINE:
        return Engine(version=version, arch=arch, problem=f"Docker {version} is older than 20.10")
    return Engine(version=version, arch=arch)


_ENGINE_PROBLEMS = (
    ("podman", "`docker` is podman here, which is not supported"),
    (
        "permission denied",
        "no right to use Docker: add the user to the group docker"
        " (sudo usermod -aG docker USER), or set SUDO=auto with sudo rights",
    ),
    *(
        (sign, "the Docker daemon is not running (systemctl start docker)")
        for sign in ("cannot connect to the docker", "failed to connect to the docker api")
    ),
)


def _engine_problem(result: Result, said: str) -> str:
    if result.timed_out or result.status == 124:
        return "the Docker daemon does not answer (systemctl restart docker)"
    if result.status in (126, 127):
        return "docker is not installed"
    lowered = said.lower()
    known = next((text for sign, text in _ENGINE_PROBLEMS if sign in lowered), "")
    return known or (f"docker version: {last_line(said)}" if result.status else "")


ENGINE = Fact(
    name="docker engine",
    program="docker",
    gate=True,
    command=Command(("docker", "version", "--format", ENGINE_FORMAT), limit_s=15, root=True),
    parse=_parse_engine,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container as the engine shows it, ours or a stranger's."""

    id: str
    name: str
    image: str
    image_id: str
    state: str
    exit_code: int = 0
    started_at: str = ""
    pid: int = 0
    restarts: int = 0
    oom_killed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def running(self) -> bool:
        return self.state == "running"


_CONTAINER_FORMAT = (
    '{"id":{{json .Id}},"name":{{json .Name}},"image":{{json .Config.Image}},'
    '"image_id":{{json .Image}},"state":{{json .State}},"restarts":{{json .RestartCount}},'
    '"labels":{{json .Config.Labels}}}'
)


@dataclass(frozen=True, slots=True)
class Containers:
    """All containers of a host; with a `problem` there may be more than these."""

    found: tuple[Container, ...] = ()
    problem: str = ""


def _parse_containers(result: Result) -> Containers:
    # A container that goes between `ps` and `inspect` makes inspect fail for it alone.
    lines = [line for line in result.stdout.split("\n") if line.startswith("{")]
    shown = [json_object(line) for line in lines]
    found = tuple(_container(one) for one in shown if one is not None)
    if result.timed_out:
        return Containers(found, "`docker inspect` hangs: a container on it is stuck")
    if None in shown:
        return Containers(found, f"its list of containers is not readable: {lines[-1][:200]}")
    gone = not result.ok and "no such container" not in result.stderr.lower()
    return Containers(found, f"docker ps: {last_line(result.output)}" if gone else "")


def _container(shown: Mapping[str, Any]) -> Container:
    state = fields(shown.get("state"))
    return Container(
        id=str(shown.get("id", "")),
        name=str(shown.get("name", "")).lstrip("/"),
        image=str(shown.get("image", "")),
        image_id=str(shown.get("image_id", "")),
        state=str(state.get("Status", "")),
        exit_code=count(state.get("ExitCode")),
        started_at=str(state.get("StartedAt", "")),
        pid=count(state.get("Pid")),
        restarts=count(shown.get("restarts")),
        oom_killed=state.get("OOMKilled") is True,
        labels=strings(shown.get("labels")),
    )


CONTAINERS = Fact(
    name="docker containers",
    program="docker",
    command=Command(
        (
            *("sh", "-c"),
            'ids=$(docker ps --all --quiet --no-trunc) || exit; [ -n "$ids" ] || exit 0;'
            ' exec docker container inspect --format "$1" $ids',
            *("sh", _CONTAINER_FORMAT),
        ),
        limit_s=20,
        root=True,
    ),
    parse=_parse_containers,
)
