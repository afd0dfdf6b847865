"""The gateway beside the head: its node under every supervisor, its fleet file and its keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from vllmdeploy.core.command import Result
from vllmdeploy.core.layout import LOGS_MOUNT, PACKAGE_FILE, PACKAGE_MOUNT, RUN_MOUNT, Layout
from vllmdeploy.core.plan import Wait
from vllmdeploy.core.spec import (
    CLUSTER_LABEL,
    FINGERPRINT_LABEL,
    GENERATION_LABEL,
    GROUP_LABEL,
    PACKAGE_LABEL,
    ROLE_LABEL,
    ContainerSpec,
    Mount,
    fingerprint,
)
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import inside
from vllmdeploy.plan.supervise import STOP_S, Made
from vllmdeploy.plan.supervise.base import owner
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import docker, files, process, systemd
from vllmdeploy.tools.vllm_services import Service

ROLE = "gateway"
_KEYS = "api_keys"
_ADMIN = "admin_key"
_KEYS_MOUNT = "/run/vllmdeploy/gateway-keys"
_START_S = 60.0
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOOPBACKS = ("127.0.0.0/8", "::1/128")
_ASK = "import sys, urllib.request as u\nprint(u.urlopen(sys.argv[1], timeout=5).read().decode())"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayWanted:
    """How the API is offered. `keys`, `admin`: what to write to the head; None: what is there."""

    listen: str
    port: int
    keyless: bool = False
    allow: tuple[str, ...] = ()
    policy: str = "adaptive"
    scheduling: str = "adaptive"
    default_model: str = ""
    batch_size: int = 32
    keys: bytes | None = field(default=None, repr=False)
    admin: bytes | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Where the head itself reaches it."""
        host = "127.0.0.1" if self.listen in _ANYWHERE else self.listen
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def gateway_name(wanted: Wanted) -> str:
    return f"{wanted.cluster}-{ROLE}"


def key_file(wanted: Wanted, layout: Layout) -> str:
    """The API keys as the gateway's node sees them."""
    return f"{_KEYS_MOUNT if wanted.runtime == 'docker' else keys_folder(layout)}/{_KEYS}"


def keys_folder(layout: Layout) -> str:
    """A folder of its own: the gateway reads these keys and not Ray's token."""
    return f"{layout.secrets}/{ROLE}"


def fleet_folder(layout: Layout, name: str) -> str:
    return f"{layout.run(name)}/fleet"


def fleet_file(gateway: GatewayWanted, services: Sequence[Service]) -> bytes:
    """What the gateway routes to; it takes a new file over without a restart."""
    document = {
        "upstreams": [
            {
                "id": one.name,
                "url": one.url,
                "models": list(one.names),
                "generation": one.generation,
                "tensor_parallel_size": one.tensor_parallel,
                "max_num_seqs": one.max_num_seqs,
            }
            for one in sorted(services, key=lambda one: one.name)
        ],
        "policy": gateway.policy,
        "scheduling": gateway.scheduling,
        "default_model": gateway.default_model,
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """Where a gateway finds its files: on the host, or inside its container."""

    run: str
    logs: str
    keys: str


def _command(wanted: Wanted, gateway: GatewayWanted, paths: _Paths, python: str) -> tuple[str, ...]:
    allow = (*gateway.allow, *_LOOPBACKS) if gateway.allow else ()
    listen = f"[{gateway.listen}]" if ":" in gateway.listen else gateway.listen
    doors = ("--auth", "none") if gateway.keyless else ("--api-keys-file", f"{paths.keys}/{_KEYS}")
    return (
        *("-m", "vllmdeploy.node.warden", "--name", gateway_name(wanted), "--role", "instance"),
        *("--run", paths.run, "--logs", paths.logs, "--health-url", f"{gateway.address}/"),
        *("--", python, "-m", "vllmdeploy.gateway", "--config", f"{paths.run}/fleet/fleet.json"),
        *("--listen", f"{listen}:{gateway.port}", "--name", wanted.cluster),
        *doors,
        *("--admin-key-file", f"{paths.keys}/{_ADMIN}"),
        *(("--allow", ",".join(allow)) if allow else ()),
        *("--batch-size", str(gateway.batch_size), "--drain-timeout", "20"),
    )


def made(wanted: Wanted, gateway: GatewayWanted, head: Member) -> Made:
    """How the gateway's node is made, and what forces a new one."""
    name, layout = gateway_name(wanted), head.layout
    folders = (layout.run(name), fleet_folder(layout, name), layout.logs(name))
    if wanted.runtime == "docker":
        return _container(wanted, gateway, head, folders)
    paths = _Paths(run=layout.run(name), logs=layout.logs(name), keys=keys_folder(layout))
    argv = (wanted.python, *_command(wanted, gateway, paths, wanted.python))
    mark = fingerprint(argv)
    environment = {"PYTHONPATH": f"{layout.package(wanted.package)}/{PACKAGE_FILE}"}
    labels = _labels(wanted, head, mark)
    if wanted.runtime == "process":
        detached = process.DetachedSpec(
            run=paths.run, argv=argv, labels=labels, environment=environment
        )
        return Made(command=process.make(detached), fingerprint=mark, folders=folders)
    unit = systemd.UnitSpec(
        name=name,
        argv=argv,
        stop_s=STOP_S,
        labels=labels,
        environment=environment,
        writable=folders,
    )
    return Made(command=systemd.make(unit), fingerprint=mark, folders=folders)


def _container(
    wanted: Wanted, gateway: GatewayWanted, head: Member, folders: tuple[str, ...]
) -> Made:
    name, layout, image = gateway_name(wanted), head.layout, head.found.image
    paths = _Paths(run=RUN_MOUNT, logs=LOGS_MOUNT, keys=_KEYS_MOUNT)
    spec = ContainerSpec(
        name=name,
        image=image.id if image else head.found.image_name,
        entrypoint="python3",
        command=_command(wanted, gateway, paths, "python3"),
        environment={"PYTHONPATH": f"{PACKAGE_MOUNT}/{PACKAGE_FILE}"},
        mounts=(
            Mount(keys_folder(layout), _KEYS_MOUNT),
            Mount(layout.run(name), RUN_MOUNT, writable=True),
            Mount(layout.logs(name), LOGS_MOUNT, writable=True),
        ),
        arguments=wanted.docker_arguments,
    )
    mark = fingerprint(docker.run(spec).argv)
    complete = replace(
        spec,
        labels=_labels(wanted, head, mark),
        mounts=(*spec.mounts, Mount(layout.package(wanted.package), PACKAGE_MOUNT)),
    )
    return Made(
        command=docker.run(complete), fingerprint=mark, folders=folders, owner=owner(head.found)
    )


def _labels(wanted: Wanted, head: Member, mark: str) -> dict[str, str]:
    return {
        CLUSTER_LABEL: wanted.cluster,
        GROUP_LABEL: head.found.host.group,
        ROLE_LABEL: ROLE,
        GENERATION_LABEL: "1",
        FINGERPRINT_LABEL: mark,
        PACKAGE_LABEL: wanted.package,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """The gateway's part of a plan. `fleet`: the digest of the file that is there."""

    ground: Ground
    gateway: GatewayWanted
    package: bytes = field(repr=False)
    fleet: str = ""

    @property
    def name(self) -> str:
        return gateway_name(self.ground.wanted)

    def route(
        self, services: Sequence[Service], cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Write which instances there are; nothing where it says so already."""
        content = fleet_file(self.gateway, services)
        if files.digest(content) == self.fleet:
            return needs
        ground = self.ground
        path = f"{fleet_folder(ground.head.layout, self.name)}/fleet.json"
        step = ground.run(files.write(path, content))
        return (ground.add("write", f"{self.name}'s instances", cause, step, needs),)

    def up(self, services: Sequence[Service], cause: str, needs: tuple[str, ...]) -> None:
        """The gateway runs and knows these services, and each of them can be used."""
        routed = self.route(services, cause, needs)
        self._await((*routed, *self._node(routed)), services)

    def restore(self, services: Sequence[Service], needs: tuple[str, ...]) -> None:
        """As `up`, where there may be nothing to do."""
        before = len(self.ground.draft.steps)
        routed = self.route(services, "not as stored", needs)
        made = self._node(routed)
        if needs or len(self.ground.draft.steps) > before:
            self._await((*routed, *made), services)

    def _node(self, needs: tuple[str, ...]) -> tuple[str, ...]:
        ground = self.ground
        how = made(ground.wanted, self.gateway, ground.head)
        keys = self._keys(how, needs)
        ours = ground.head.found.ours(ground.wanted.cluster)
        there = next((one for one in ours if one.name == self.name), None)
        if there is None:
            return self._create(how, "not found", (*needs, *keys))
        if there.fingerprint != how.fingerprint:
            gone: tuple[str, ...] = needs
            layout = ground.head.layout
            for verb, command in zip(
                ("stop", "remove"), ground.supervisor.remove(there, layout), strict=False
            ):
                action = ground.run(command)
                cause = "settings changed"
                gone = (ground.add(verb, self.name, cause, action, gone, destructive=True),)
            return self._create(how, "settings changed", (*gone, *keys))
        if not there.running:
            action = ground.run(ground.supervisor.start(there, ground.head.layout))
            return (
                ground.add("start", self.name, f"it is {there.state}", action, (*needs, *keys)),
            )
        return keys

    def _create(self, how: Made, cause: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        ground, layout = self.ground, self.ground.head.layout
        package = self._package()
        make = ground.run(files.folders(*how.folders, owner=how.owner))
        folders = ground.add("create", f"{self.name}'s folders", cause, make, needs)
        command = ground.run(how.command)
        hint = f"vllmdeploy logs {ground.head.name} ({layout.logs(self.name)})"
        return (
            ground.add("create", self.name, cause, command, (*needs, *package, folders), hint=hint),
        )

    def _package(self) -> tuple[str, ...]:
        ground, sha = self.ground, self.ground.wanted.package
        subject = f"package {sha}"
        key = f"{ground.head.name}: write {subject}"
        if any(step.key == key for step in ground.draft.steps):
            return (key,)
        if sha in ground.head.found.packages:
            return ()
        path = f"{ground.head.layout.package(sha)}/{PACKAGE_FILE}"
        step = ground.run(files.write(path, self.package))
        return (ground.add("write", subject, "not there", step),)

    def _keys(self, how: Made, needs: tuple[str, ...]) -> tuple[str, ...]:
        """Keys that are wanted and not there as they are; nothing of them is ever shown."""
        ground, layout = self.ground, self.ground.head.layout
        have = ground.head.found.secrets
        wanted = {_KEYS: self.gateway.keys, _ADMIN: self.gateway.admin}
        missing = {
            name: content
            for name, content in wanted.items()
            if content is not None and have.get(f"{ROLE}/{name}") != files.digest(content)
        }
        if not missing:
            return ()
        make = files.folders(keys_folder(layout), mode="0700", owner=how.owner)
        folder = ground.add("create", "keys folder", "not all keys are there", ground.run(make))
        return tuple(
            ground.add(
                "write",
                {_KEYS: "API keys", _ADMIN: "admin key"}[name],
                "not found" if f"{ROLE}/{name}" not in have else "changed",
                ground.run(
                    files.write(
                        f"{keys_folder(layout)}/{name}", content, mode="0600", owner=how.owner
                    )
                ),
                (folder,),
            )
            for name, content in missing.items()
        )

    def _await(self, needs: tuple[str, ...], services: Sequence[Service]) -> str:
        ground = self.ground
        ask = ("python3", "-c", _ASK, f"{self.gateway.address}/health")
        command = ground.head.found.access.of(inside(ground.wanted, self.name, *ask))
        logs = ground.supervisor.logs(self.name, ground.head.layout, tail=12)
        wait = Wait(
            command=command.within(20),
            missing=_unready({one.name for one in services}),
            limit_s=_START_S,
            explain=((ground.head.name, ground.head.found.access.of(logs.within(15))),),
        )
        cause = "every service can be used through it"
        return ground.add("await", self.name, cause, wait, tuple(dict.fromkeys(needs)))


def _unready(services: set[str]) -> Callable[[Result], str | None]:
    def missing(result: Result) -> str | None:
        try:
            shown = cast("dict[str, Any]", json.loads(result.stdout))
            models = cast("Mapping[str, Mapping[str, Any]]", shown["models"])
        except (ValueError, KeyError, TypeError):
            return "it does not answer yet"
        ready = {name for name, one in models.items() if one["instances"]["ready"]}
        lacking = sorted(services - ready)
        return f"no ready instance of {', '.join(lacking)}" if lacking else None

    return missing
