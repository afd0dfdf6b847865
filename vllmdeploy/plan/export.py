"""Decided instances and their gateway as files that run the same thing without this tool."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.core.spec import ContainerSpec, Mount
from vllmdeploy.errors import UsageError
from vllmdeploy.plan import mps_share
from vllmdeploy.plan.instances_decide import Instances
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.plan.node import QUIET
from vllmdeploy.plan.service_gateway_node import GatewayWanted, fleet_file
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import compose, systemd

_CACHE = "/var/cache/vllmdeploy"
_GENERATION = "VLLMDEPLOY_GENERATION"
_STOP_S = 60
_PORT = "--port"
_LOOPBACKS = "127.0.0.0/8,::1/128"


# The gateway has no driver to load and no code to compile.
_NO_DEVICES = (
    "PrivateDevices=yes\n"
    "CapabilityBoundingSet=\n"
    "ProtectClock=yes\n"
    "ProtectKernelModules=yes\n"
    "SystemCallFilter=~@module\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is written: instances, the host of the gateway, and the program that the gateway is."""

    wanted: Wanted
    instances: Instances
    gateway: GatewayWanted
    lead: str
    package: bytes = field(repr=False)

    @property
    def cluster(self) -> str:
        return self.wanted.cluster

    @property
    def etc(self) -> str:
        return f"/etc/{self.cluster}"

    @property
    def by_host(self) -> Mapping[str, list[Instance]]:
        """The lead is one of them, instances or not: it has the gateway."""
        found: dict[str, list[Instance]] = {self.lead: []}
        for one in self.instances.of:
            found.setdefault(one.slot.host, []).append(one)
        return found

    def beside(self, host: str) -> Mapping[str, bytes]:
        """What the gateway is started with, on its own host."""
        if host != self.lead:
            return {}
        fleet = fleet_file(self.gateway, [one.service for one in self.instances.of])
        return {"fleet.json": fleet, PACKAGE_FILE: self.package}


def gateway_argv(exported: Exported, *, python: str, files: str, state: str) -> tuple[str, ...]:
    gateway = exported.gateway
    listen = f"[{gateway.listen}]" if ":" in gateway.listen else gateway.listen
    allow = (*gateway.allow, _LOOPBACKS) if gateway.allow else ()
    keys = ("--auth", "none") if gateway.keyless else ("--api-keys-file", f"{files}/api_keys")
    return (
        *(python, "-m", "vllmdeploy.gateway", "--config", f"{files}/fleet.json"),
        *("--state", f"{state}/state.json", "--files", f"{state}/files"),
        *("--listen", f"{listen}:{gateway.port}", "--name", exported.cluster),
        *(*keys, "--admin-key-file", f"{files}/admin_key"),
        *(("--allow", ",".join(allow)) if allow else ()),
        *("--batch-size", str(gateway.batch_size)),
    )


def environment_of(wanted: Wanted, one: Instance) -> dict[str, str]:
    own = {key: value for key, value in one.file.environment.items() if key != _GENERATION}
    return {**own, **QUIET, **wanted.environment}


def units(exported: Exported, host: str) -> Mapping[str, bytes]:
    """A template unit with one small file for each instance, as an administrator would have it."""
    ours = exported.by_host[host]
    name = exported.instances.name
    found: dict[str, bytes] = dict(exported.beside(host))
    if ours:
        found[f"{name}@.service"] = _template(exported, ours).encode()
    for one in ours:
        found[f"{name}-{one.slot.number}.env"] = _values(one).encode()
    if host == exported.lead:
        found[f"{exported.cluster}-gateway.service"] = _gateway_unit(exported).encode()
    found["install.sh"] = _install(exported, host, list(found)).encode()
    return found


def _template(exported: Exported, ours: Sequence[Instance]) -> str:
    texts = {_unit_text(exported, one) for one in ours}
    if len(texts) > 1:
        raise UsageError(
            f"{ours[0].slot.host}: its instances differ in more than cards and port",
            hint="cards of different models on one host: export them under several --name",
        )
    return texts.pop()


def _unit_text(exported: Exported, one: Instance) -> str:
    name, argv = exported.instances.name, one.file.argv
    at = argv.index(_PORT) + 1
    before, after = systemd.command(argv[:at]), systemd.command(argv[at + 1 :])
    cache = f"{_CACHE}/%p"
    environment = {
        **environment_of(exported.wanted, one),
        "HOME": cache,
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
    }
    # %p is the unit's own name, so these lines are written as they are, not quoted away.
    lines = "".join(
        f'Environment="{key}={value}"\n'
        if cache in value
        else f"Environment={systemd.quote(f'{key}={value}')}\n"
        for key, value in sorted(environment.items())
    )
    return (
        f"# Written by `vllmdeploy export systemd`.\n"
        f"[Unit]\n"
        f"Description=vLLM instance %i of {systemd.plain(name)}\n"
        f"After=network-online.target\n"
        f"Wants=network-online.target\n"
        f"StartLimitIntervalSec=900\n"
        f"StartLimitBurst=5\n"
        f"\n[Service]\n"
        f"Type=exec\n"
        f"EnvironmentFile={exported.etc}/%p-%i.env\n"
        f'ExecStart={before} "${{PORT}}" {after}\n'
        f"TimeoutStopSec={_STOP_S}\n"
        f"CacheDirectory=vllmdeploy/%p\n"
        f"{lines}{_restarting(systemd.SUPERVISION)}{systemd.HARDENING}{systemd.CONFINEMENT}"
        f"ReadWritePaths=/tmp\n"
        f"\n[Install]\nWantedBy=multi-user.target\n"
    )


def _restarting(supervision: str) -> str:
    """An engine that cannot start is not begun anew every second, as a warden may be."""
    return supervision.replace("RestartSec=1\n", "RestartSec=10\n")


def _values(one: Instance) -> str:
    accelerator = one.member.accelerator
    lines = [f"PORT={one.slot.port}"]
    if accelerator.visible_variable and one.slot.cards:
        lines.append(f"{accelerator.visible_variable}={','.join(map(str, one.slot.cards))}")
    if accelerator.visible_variable == "CUDA_VISIBLE_DEVICES":
        lines.append("CUDA_DEVICE_ORDER=PCI_BUS_ID")
    return "\n".join(lines) + "\n"


def _gateway_unit(exported: Exported) -> str:
    state = f"{exported.cluster}-gateway"
    argv = gateway_argv(
        exported,
        python=exported.wanted.python
        if exported.wanted.python != "python3"
        else "/usr/bin/python3",
        files=exported.etc,
        state=f"/var/lib/{state}",
    )
    path = systemd.quote(f"PYTHONPATH={exported.etc}/{PACKAGE_FILE}")
    return (
        f"# Written by `vllmdeploy export systemd`.\n"
        f"[Unit]\n"
        f"Description=Gateway of {systemd.plain(exported.cluster)}\n"
        f"After=network-online.target\n"
        f"Wants=network-online.target\n"
        f"\n[Service]\n"
        f"Type=exec\n"
        f"ExecStart={systemd.command(argv)}\n"
        f"TimeoutStopSec={_STOP_S}\n"
        f"StateDirectory={systemd.plain(state)}\n"
        f"Environment={path}\n"
        f"{systemd.SUPERVISION}{systemd.HARDENING}{systemd.CONFINEMENT}"
        f"{_NO_DEVICES}"
        f"\n[Install]\nWantedBy=multi-user.target\n"
    )


def _install(exported: Exported, host: str, files: Sequence[str]) -> str:
    name = exported.instances.name
    started = [f"{name}@{one.slot.number}.service" for one in exported.by_host[host]]
    if host == exported.lead:
        started.append(f"{exported.cluster}-gateway.service")
    etc = shlex.quote(exported.etc)
    kept = shlex.join(file for file in files if not file.endswith(".service"))
    made = shlex.join(file for file in files if file.endswith(".service"))
    return (
        "#!/bin/sh\n"
        "# Written by `vllmdeploy export systemd`; run it as root on its host, from this folder.\n"
        "set -eu\n"
        'cd "$(dirname "$0")"\n'
        f"install -d -m 0755 {etc}\n"
        f"{_keys(exported, host)}"
        f"install -m 0644 {kept} {etc}/\n"
        f"install -m 0644 {made} {systemd.UNIT_FOLDER}/\n"
        "systemctl daemon-reload\n"
        f"systemctl enable --now {shlex.join(started)}\n"
    )


def _keys(exported: Exported, host: str) -> str:
    """Keys are made where they are used, and kept when they are there."""
    if host != exported.lead:
        return ""
    names = ("admin_key",) if exported.gateway.keyless else ("api_keys", "admin_key")
    return (
        f"for name in {' '.join(names)}; do\n"
        f"  file={shlex.quote(exported.etc)}/$name\n"
        "  [ -s \"$file\" ] || (umask 077 && printf 'default:%s\\n' \\\n"
        '    "$(od -An -N24 -tx1 /dev/urandom | tr -d \' \\n\')" > "$file")\n'
        "done\n"
    )


def compose_files(exported: Exported, host: str) -> Mapping[str, bytes]:
    services: dict[str, compose.Composed] = {}
    last: dict[tuple[int, ...], str] = {}
    for one in exported.by_host[host]:
        cards = one.slot.cards
        services[one.service.name] = compose.Composed(
            spec=_container(exported, one),
            health=f"{one.service.url}/health",
            # Each measures the memory that is left on its card, so they take turns.
            after=(last[cards],) if cards and cards in last else (),
        )
        last[cards] = one.service.name
    if host == exported.lead:
        services["gateway"] = compose.Composed(spec=_gateway_container(exported, host))
    heading = (
        "Written by `vllmdeploy export compose`.\n"
        f"For {host}: docker compose up -d, in this folder."
    )
    if host == exported.lead:
        keys = "keys/admin_key" if exported.gateway.keyless else "keys/api_keys and keys/admin_key"
        heading += f"\nFirst put {keys} there (mode 0600, one key a line)."
    if any(one.node.mps for one in exported.by_host[host]):
        heading += f"\nBefore all: vllmdeploy mps start --hosts {host}"
    text = compose.text(services, heading=heading)
    return {"compose.yaml": text.encode(), **exported.beside(host)}


def _container(exported: Exported, one: Instance) -> ContainerSpec:
    wanted, member = exported.wanted, one.member
    access = member.container_access(by_cdi=wanted.cdi)
    program, *rest = one.file.argv
    return ContainerSpec(
        name=one.node.name,
        image=member.found.image_name,
        entrypoint=program,
        command=tuple(rest),
        environment={**access.environment, **environment_of(wanted, one)},
        mounts=(Mount(wanted.model_path, wanted.model_path), *_door_mounts(one)),
        arguments=(
            *access.arguments,
            *(mps_share.ARGUMENTS if one.node.mps else ()),
            *wanted.docker_arguments,
        ),
        shm_size=wanted.shm_size,
    )


def _door_mounts(one: Instance) -> tuple[Mount, ...]:
    return mps_share.mounts(one.node.mps) if one.node.mps else ()


def _gateway_container(exported: Exported, host: str) -> ContainerSpec:
    image = next(
        (one.member.found.image_name for one in exported.instances.of if one.slot.host == host),
        "python:3.12-slim",
    )
    program, *rest = gateway_argv(exported, python="python3", files="/gateway", state="/state")
    return ContainerSpec(
        name=f"{exported.cluster}-gateway",
        image=image,
        entrypoint=program,
        command=tuple(rest),
        environment={"PYTHONPATH": f"/gateway/{PACKAGE_FILE}"},
        mounts=(
            Mount("./fleet.json", "/gateway/fleet.json"),
            Mount(f"./{PACKAGE_FILE}", f"/gateway/{PACKAGE_FILE}"),
            *(() if exported.gateway.keyless else (Mount("./keys/api_keys", "/gateway/api_keys"),)),
            Mount("./keys/admin_key", "/gateway/admin_key"),
            Mount("./state", "/state", writable=True),
        ),
    )
