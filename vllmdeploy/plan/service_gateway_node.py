"""The gateway's node beside the head: its command line, its files, how each runtime makes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vllmdeploy.core.layout import LOGS_MOUNT, PACKAGE_FILE, PACKAGE_MOUNT, RUN_MOUNT, Layout
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
from vllmdeploy.plan.instances_wanted import asked_of
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.rerank import rendering_threads
from vllmdeploy.plan.supervise import STOP_S, Made
from vllmdeploy.plan.supervise.base import owner
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import docker, process, systemd
from vllmdeploy.tools.vllm_services import Service

ROLE = "gateway"
KEYS = "api_keys"
ADMIN = "admin_key"
CALLED = {KEYS: "API keys", ADMIN: "admin key"}
_KEYS_MOUNT = "/run/vllmdeploy/gateway-keys"
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOOPBACKS = ("127.0.0.0/8", "::1/128")


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
    files_mib: int = 10_240
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
    return f"{_KEYS_MOUNT if wanted.runtime == 'docker' else keys_folder(layout)}/{KEYS}"


def keys_folder(layout: Layout) -> str:
    """A folder of its own: the gateway reads these keys and not Ray's token."""
    return f"{layout.secrets}/{ROLE}"


def fleet_folder(layout: Layout, name: str) -> str:
    return f"{layout.run(name)}/fleet"


def fleet_file(gateway: GatewayWanted, services: Sequence[Service], *, draining: str = "") -> bytes:
    """What the gateway routes to; it takes a new file over without a restart. `draining`: the
    engine that gets nothing new."""
    document = {
        "upstreams": [
            {
                "id": one.name,
                "url": one.url,
                "models": list(one.names),
                "generation": one.generation,
                "tensor_parallel_size": one.tensor_parallel,
                "max_num_seqs": one.max_num_seqs,
                **_threads(one),
                **({"drain": True} if one.name == draining else {}),
            }
            for one in sorted(services, key=lambda one: one.name)
        ],
        "policy": gateway.policy,
        "scheduling": gateway.scheduling,
        "default_model": gateway.default_model,
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _threads(one: Service) -> dict[str, int]:
    """What an engine was told of rendering requests, where it was told."""
    found = rendering_threads(asked_of(one).engine.arguments) if "instances" in one.asked else None
    return {"max_workers": found} if found else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """Where a gateway finds its files: on the host, or inside its container."""

    run: str
    logs: str
    keys: str


def _command(wanted: Wanted, gateway: GatewayWanted, paths: _Paths, python: str) -> tuple[str, ...]:
    allow = (*gateway.allow, *_LOOPBACKS) if gateway.allow else ()
    listen = f"[{gateway.listen}]" if ":" in gateway.listen else gateway.listen
    doors = ("--auth", "none") if gateway.keyless else ("--api-keys-file", f"{paths.keys}/{KEYS}")
    return (
        *("-m", "vllmdeploy.node.warden", "--name", gateway_name(wanted), "--role", "instance"),
        *("--run", paths.run, "--logs", paths.logs, "--health-url", f"{gateway.address}/"),
        *("--", python, "-m", "vllmdeploy.gateway", "--config", f"{paths.run}/fleet/fleet.json"),
        *("--listen", f"{listen}:{gateway.port}", "--name", wanted.cluster),
        *doors,
        *("--admin-key-file", f"{paths.keys}/{ADMIN}"),
        *(("--allow", ",".join(allow)) if allow else ()),
        *("--batch-size", str(gateway.batch_size), "--drain-timeout", "20"),
        *("--files", f"{paths.run}/files", "--files-size", f"{gateway.files_mib}M"),
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
        confined=True,
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
