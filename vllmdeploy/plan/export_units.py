"""Exported instances and their gateway as systemd units, with a script that installs them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.errors import UsageError
from vllmdeploy.plan.export import Exported, environment_of, gateway_argv
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.tools import systemd

_CACHE = "/var/cache/vllmdeploy"
_STOP_S = 60
_PORT = "--port"
# The gateway has no driver to load and no code to compile.
_NO_DEVICES = (
    "PrivateDevices=yes\n"
    "CapabilityBoundingSet=\n"
    "ProtectClock=yes\n"
    "ProtectKernelModules=yes\n"
    "SystemCallFilter=~@module\n"
)


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
