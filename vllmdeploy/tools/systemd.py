"""A warden as a systemd unit: its text, the commands that install and remove it, and its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.tools import files

UNIT_FOLDER = "/etc/systemd/system"
PREFIX = "vllmdeploy-"
_LABELS = "X-Vllmdeploy"  # systemd leaves sections with X- to whoever wrote them

# Not used, because it would take cards away: PrivateDevices, DevicePolicy, ProtectClock (it
# brings a device list with it) and ProtectKernelModules (drivers load their last part on demand).
# MemoryDenyWriteExecute would stop every kernel that is compiled at run time.
HARDENING = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictSUIDSGID=yes
LockPersonality=yes
"""

# For engines and gateways. Ray runs whatever its users give it, profilers included, so its nodes go
# without. What is left of capabilities and calls is what drivers need to load their last part and
# to make device files, and what root needs to read models and caches that others own. A call that
# is not allowed fails; it kills nobody.
CONFINEMENT = """\
RestrictNamespaces=yes
RestrictRealtime=yes
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_IPC_LOCK \
CAP_KILL CAP_MKNOD CAP_SYS_MODULE CAP_SYS_NICE
SystemCallArchitectures=native
SystemCallFilter=@system-service @module
SystemCallErrorNumber=EPERM
"""

# One worker out of memory must not end the node: the warden decides what that means.
SUPERVISION = """\
Restart=always
RestartSec=1
OOMPolicy=continue
KillMode=mixed
TasksMax=infinity
LimitMEMLOCK=infinity
LimitNOFILE=1048576
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """`writable`: the folders it may write, besides /tmp, where Ray's sockets have to be."""

    name: str
    argv: tuple[str, ...]
    stop_s: int
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    writable: tuple[str, ...] = ()
    user: str = ""
    confined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One of our units on a host, as systemd and its file describe it."""

    name: str
    active: str = ""
    sub: str = ""
    enabled: bool = False
    pid: int = 0
    restarts: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def running(self) -> bool:
        return self.active in ("active", "reloading")


def unit_name(name: str) -> str:
    return f"{PREFIX}{name}.service"


def text(spec: UnitSpec) -> str:
    """The unit file; ValueError for what no unit file can hold."""
    user = f"User={plain(spec.user)}\n" if spec.user else ""
    environment = "".join(
        f"Environment={quote(f'{name}={value}')}\n"
        for name, value in sorted(spec.environment.items())
    )
    writable = " ".join(quote(path) for path in ("/tmp", *spec.writable))  # noqa: S108  Ray's
    labels = "".join(f"{name}={plain(value)}\n" for name, value in sorted(spec.labels.items()))
    return (
        f"[Unit]\n"
        f"Description=vllmdeploy node {plain(spec.name)}\n"
        f"After=network-online.target\n"
        f"Wants=network-online.target\n"
        f"StartLimitIntervalSec=0\n"
        f"\n[Service]\n"
        f"Type=exec\n"
        f"ExecStart={command(spec.argv)}\n"
        f"TimeoutStopSec={spec.stop_s}\n"
        f"{user}{environment}{SUPERVISION}{HARDENING}{CONFINEMENT if spec.confined else ''}"
        f"ReadWritePaths={writable}\n"
        f"\n[Install]\nWantedBy=multi-user.target\n"
        f"\n[{_LABELS}]\n{labels}"
    )


def plain(value: str) -> str:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise ValueError(f"a systemd unit cannot hold control characters: {value!r}")
    return value


def quote(value: str) -> str:
    """One word of a unit file: quotes and backslashes escaped, specifiers taken literally."""
    escaped = plain(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def command(argv: Iterable[str]) -> str:
    # Only a command line expands variables, so only here does a dollar need its double.
    return " ".join(quote(word).replace("$", "$$") for word in argv)


_MAKE = f"""
{files.TAKE_WHOLE} && chmod 0644 "$1.new" && mv -f "$1.new" "$1" \\
  && systemctl daemon-reload && systemctl enable --quiet -- "$3" && systemctl restart -- "$3"
"""

_REMOVE = """
if [ -e "$1" ]; then systemctl disable --now --quiet -- "$2" || exit 1; fi
rm -f "$1" && systemctl daemon-reload
systemctl reset-failed -- "$2" 2>/dev/null
exit 0
"""

_FOUND = """
command -v systemctl >/dev/null || exit 0
for file in "$1"/vllmdeploy-*.service; do
  [ -r "$file" ] || continue
  unit=${file##*/}
  printf '@@unit@@%s\\n' "$unit"
  systemctl show --property=ActiveState,SubState,UnitFileState,MainPID,NRestarts -- "$unit"
  sed -n '/^\\[X-Vllmdeploy\\]$/,$s/^\\([^=]*\\)=/label \\1=/p' "$file"
done
exit 0
"""


def make(spec: UnitSpec) -> Command:
    """Write the unit, have it started at boot, and (re)start it now."""
    unit = unit_name(spec.name)
    path = f"{UNIT_FOLDER}/{unit}"
    limit_s = spec.stop_s + 60.0
    content = text(spec).encode()
    made = script(_MAKE, path, str(len(content)), unit, stdin=content, root=True)
    return replace(made.within(limit_s), open_stdin=True)


def start(name: str) -> Command:
    return Command(("systemctl", "start", "--", unit_name(name)), root=True)


def stop(name: str, *, stop_s: int) -> Command:
    command = Command(("systemctl", "stop", "--", unit_name(name)), root=True)
    return command.within(stop_s + 60.0)


def restart(name: str, *, stop_s: int) -> Command:
    command = Command(("systemctl", "restart", "--", unit_name(name)), root=True)
    return command.within(stop_s + 60.0)


def remove(name: str, *, stop_s: int) -> Command:
    unit = unit_name(name)
    return script(_REMOVE, f"{UNIT_FOLDER}/{unit}", unit, root=True).within(stop_s + 60.0)


def logs(name: str, *, tail: int | None = None, follow: bool = False) -> Command:
    count = ("--lines", "all" if tail is None else str(tail))
    following = ("--follow",) if follow else ()
    argv = ("journalctl", "--unit", unit_name(name), "--output", "cat", "--no-pager")
    return Command((*argv, *count, *following), root=True)


def found(folder: str = UNIT_FOLDER) -> Fact[tuple[Unit, ...]]:
    return Fact(
        name="systemd units",
        command=script(_FOUND, folder, root=True).within(20),
        parse=_parse_found,
    )


def _parse_found(result: Result) -> tuple[Unit, ...]:
    return tuple(map(_unit, result.stdout.split("@@unit@@")[1:]))


def _unit(part: str) -> Unit:
    name, _, rest = part.partition("\n")
    fields: dict[str, str] = {}
    labels: dict[str, str] = {}
    for line in rest.splitlines():
        key, separator, value = line.partition("=")
        if separator and key.startswith("label "):
            labels[key.removeprefix("label ")] = value
        elif separator:
            fields[key] = value
    return Unit(
        name=name.removeprefix(PREFIX).removesuffix(".service"),
        active=fields.get("ActiveState", ""),
        sub=fields.get("SubState", ""),
        enabled=fields.get("UnitFileState") == "enabled",
        pid=_number(fields.get("MainPID", "")),
        restarts=_number(fields.get("NRestarts", "")),
        labels=labels,
    )


def _number(value: str) -> int:
    return int(value) if value.isdigit() else 0
