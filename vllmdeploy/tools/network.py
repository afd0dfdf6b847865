"""A host's network interfaces, its RDMA devices, and whom it can reach."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import whole

# Interfaces that belong to containers and virtual machines, never to the fleet.
# Docker's own bridges end in hex digits; a `br-lan` is somebody's real one.
_NOT_OURS = re.compile(
    r"lo(:.*)?|br-[0-9a-f]{12}|(docker|podman|nerdctl|veth|virbr|vnet|vboxnet|vmnet|cni|flannel|cali|"
    r"cilium|weave|tunl|kube|lxc|lxd|incusbr).*"
)
# What kernels say of a link without a speed: -1, as it looks in 16 and in 32 bits.
_NO_SPEED = (65535, 4294967295)


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
        """Link-local addresses are the same on every host, as a BMC's USB network has them."""
        own = ipaddress.IPv4Address(self.ip)
        return _NOT_OURS.fullmatch(self.name) is None and not own.is_link_local


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """All addresses of a host, the interface of its default route, and live RDMA devices."""

    interfaces: tuple[Interface, ...] = ()
    default_interface: str = ""
    rdma: tuple[str, ...] = ()
    problem: str = ""

    def with_ip(self, ip: str) -> Interface | None:
        return next((found for found in self.interfaces if found.ip == ip), None)

    def named(self, name: str) -> Interface | None:
        return next((found for found in self.interfaces if found.name == name), None)

    def may_use(self, other: Links, *, named: bool) -> list[str]:
        """The other host's addresses that this one may have to use. Where nobody named any
        (`ip=`, `interface=`), they are on networks of both; the rest would only cost time."""
        ours = {link.network for link in self.interfaces}
        return [
            link.ip
            for link in other.interfaces
            if link.for_fleet and (named or link.network in ours)
        ]


_LINKS = """
command -v ip >/dev/null 2>&1 || echo 'problem there is no `ip` on it: install iproute2'
ip -o -4 addr show up 2>/dev/null
ip -o -4 route show default 2>/dev/null
for path in /sys/class/net/*; do
  read -r speed 2>/dev/null <"$path/speed" && printf 'speed %s %s\\n' "${path##*/}" "$speed"
done
for port in /sys/class/infiniband/*/ports/*; do
  read -r state 2>/dev/null <"$port/state" || continue
  device=${port%/ports/*}
  printf 'rdma %s %s\\n' "${device##*/}" "$state"
done
exit 0
"""


def _parse_links(result: Result) -> Links:
    speeds: dict[str, int] = {}
    addresses: list[tuple[str, ipaddress.IPv4Interface]] = []
    rdma: list[str] = []
    default = problem = ""
    for line in result.stdout.splitlines():
        fields = line.split()
        if fields[:1] == ["speed"] and len(fields) == 3:
            speeds[fields[1]] = whole(fields[2]) or 0
        elif fields[:1] == ["problem"]:
            problem = line.partition(" ")[2]
        elif fields[:1] == ["rdma"] and "ACTIVE" in line and fields[1] not in rdma:
            rdma.append(fields[1])
        elif fields[:1] == ["default"] and "dev" in fields[:-1] and not default:
            default = _name(fields[fields.index("dev") + 1])
        elif len(fields) > 3 and fields[2] == "inet":
            addresses += [(_name(fields[1]), one) for one in _addresses(fields[3])]
    return Links(
        interfaces=tuple(
            Interface(
                name=name,
                ip=str(one.ip),
                prefix=one.network.prefixlen,
                speed_mbit=_speed(speeds.get(name, 0)),
            )
            for name, one in addresses
        ),
        default_interface=default,
        rdma=tuple(rdma),
        problem=problem,
    )


def _name(shown: str) -> str:
    """`eth0.5@eth0:` is eth0.5: what follows names the interface below it."""
    return shown.rstrip(":").partition("@")[0]


def _addresses(shown: str) -> tuple[ipaddress.IPv4Interface, ...]:
    try:
        return (ipaddress.IPv4Interface(shown),)
    except ValueError:
        return ()


def _speed(mbit: int) -> int | None:
    return mbit if mbit > 0 and mbit not in _NO_SPEED else None


LINKS = Fact(name="network", command=script(_LINKS).within(20), parse=_parse_links)

# A refused connection proves the path both ways as well as an accepted one does: the other
# side's reset came back. Only silence and "no route" mean that a path is not there.
_REACH = """
export LC_ALL=C
try_bash() { timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1; }
try_python() {
  [ -n "$python" ] || return 127
  "$python" -c 'import socket,sys
try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
except ConnectionRefusedError: sys.exit(0)
except OSError as error: sys.exit(str(error))' "$1" "$2" 2>&1
}
python=$(command -v python3)
port=$1; shift
for ip do
  (
    status=127
    if command -v bash >/dev/null 2>&1; then said=$(try_bash "$ip" "$port"); status=$?; fi
    case $status:$said in
      # No `timeout`, no bash, or a bash that was built without /dev/tcp.
      127:*|*'No such file'*) said=$(try_python "$ip" "$port"); status=$? ;;
    esac
    case $status:$said in
      127:*) echo "$ip unknown" ;;
      0:*) echo "$ip yes" ;;
      *refused*) echo "$ip yes connection refused" ;;
      124:*) echo "$ip no timed out" ;;
      *) said=$(printf '%s' "$said" | tail -n 1); echo "$ip no ${said##*: }" ;;
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


def accepts(ip: str, port: int) -> Fact[str]:
    """Why nothing accepts connections there; an empty text where something does, or where that
    could not be tried."""

    def parse(result: Result) -> str:
        _, _, said = result.stdout.strip().partition(" ")
        return "" if said in ("yes", "unknown") else said.split(" ", 1)[-1] or "no connection"

    return Fact(name="accepts", command=_reach((ip,), port), parse=parse)


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
