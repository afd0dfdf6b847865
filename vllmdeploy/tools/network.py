"""A host's network interfaces, its RDMA devices, and whom it can reach."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact

# Interfaces that belong to containers and virtual machines, never to the fleet.
_NOT_OURS = (
    "lo",
    "docker",
    "br-",
    "veth",
    "virbr",
    "cni",
    "flannel",
    "cali",
    "tunl",
    "kube",
    "lxc",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One IPv4 address of one interface that is up."""

    name: str
    ip: str
    prefix: int
    speed_mbit: int | None = None

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Interface(f"{self.ip}/{self.prefix}").network

    @property
    def for_fleet(self) -> bool:
        return not self.name.startswith(_NOT_OURS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """All addresses of a host, the interface of its default route, and live RDMA devices."""

    interfaces: tuple[Interface, ...] = ()
    default_interface: str = ""
    rdma: tuple[str, ...] = ()

    def with_ip(self, ip: str) -> Interface | None:
        return next((found for found in self.interfaces if found.ip == ip), None)

    def named(self, name: str) -> Interface | None:
        return next((found for found in self.interfaces if found.name == name), None)


_LINKS = """
ip -o -4 addr show up 2>/dev/null
ip -o -4 route show default 2>/dev/null | head -n 1
for path in /sys/class/net/*; do
  speed=$(cat "$path/speed" 2>/dev/null) && printf 'speed %s %s\\n' "${path##*/}" "$speed"
done
for port in /sys/class/infiniband/*/ports/*; do
  [ -r "$port/state" ] || continue
  device=${port%/ports/*}
  printf 'rdma %s %s\\n' "${device##*/}" "$(cat "$port/state")"
done
exit 0
"""


def _parse_links(result: Result) -> Links:
    speeds: dict[str, int] = {}
    addresses: list[tuple[str, str, int]] = []
    rdma: list[str] = []
    default = ""
    for line in result.stdout.splitlines():
        fields = line.split()
        if fields[:1] == ["speed"] and len(fields) == 3 and fields[2].isdigit():
            speeds[fields[1]] = int(fields[2])
        elif fields[:1] == ["rdma"] and "ACTIVE" in line and fields[1] not in rdma:
            rdma.append(fields[1])
        elif fields[:1] == ["default"] and "dev" in fields[:-1]:
            default = fields[fields.index("dev") + 1]
        elif len(fields) > 3 and fields[2] == "inet":
            ip, _, prefix = fields[3].partition("/")
            addresses.append((fields[1].rstrip(":"), ip, int(prefix or 32)))
    return Links(
        interfaces=tuple(
            Interface(name=name, ip=ip, prefix=prefix, speed_mbit=speeds.get(name) or None)
            for name, ip, prefix in addresses
        ),
        default_interface=default,
        rdma=tuple(rdma),
    )


LINKS = Fact(name="network", command=script(_LINKS).within(20), parse=_parse_links)

# A refused connection proves the path both ways as well as an accepted one does: the other
# side's reset came back. Only silence and "no route" mean that a path is not there.
_REACH = """
try_bash() { timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1; }
try_python() {
  timeout 4 "$python" -c 'import socket,sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
except ConnectionRefusedError: sys.exit(0)
except OSError as error: sys.exit(str(error))' "$1" "$2" 2>&1
}
python=$(command -v python3)
port=$1; shift
for ip do
  (
    if command -v bash >/dev/null 2>&1; then said=$(try_bash "$ip" "$port")
    elif [ -n "$python" ]; then said=$(try_python "$ip" "$port")
    else echo "$ip unknown"; exit 0; fi
    status=$?
    case $status:$said in
      0:*|*refused*) echo "$ip yes" ;;
      124:*) echo "$ip no timed out" ;;
      *) echo "$ip no $(printf '%s' "$said" | tail -n 1)" ;;
    esac
  ) &
done
wait
exit 0
"""


def reach(ips: Sequence[str], port: int) -> Fact[dict[str, str]]:
    """For each address the reason why it cannot be reached; an empty text where it can.

    An address that could not be tried (no bash, no python3) is left out.
    """
    return Fact(name="reach", command=_reach(ips, port), parse=_parse_reach)


def _reach(ips: Sequence[str], port: int) -> Command:
    return script(_REACH, str(port), *ips).within(30)


def _parse_reach(result: Result) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        ip, _, said = line.partition(" ")
        verdict, _, reason = said.partition(" ")
        if verdict in ("yes", "no"):
            found[ip] = "" if verdict == "yes" else reason or "no connection"
    return found
