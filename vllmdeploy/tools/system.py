"""The host itself: what it is, who listens on it, what guards it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllmdeploy.core.command import Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import whole

# What `uname -m` says, as Docker names it.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    hostname: str = ""
    own_address: str = ""
    machine: str = ""
    kernel: str = ""
    cpus: int = 0
    memory_mib: int = 0
    clock: int = 0
    boot_id: str = ""
    selinux: str = ""
    state_free_mib: int | None = None
    proxies: tuple[tuple[str, str], ...] = ()

    @property
    def proxies_with_password(self) -> tuple[tuple[str, str], ...]:
        """Whoever may list processes or containers would read them there."""
        return tuple(proxy for proxy in self.proxies if "@" in proxy[1])

    @property
    def arch(self) -> str:
        return ARCHITECTURES.get(self.machine, self.machine)


_SYSTEM = """
say() { printf '%s=%s\\n' "$1" "$2"; }
set -- "$1" $(uname -nrm)
say hostname "$2"; say kernel "$3"; say machine "$4"
look=getent; if command -v timeout >/dev/null 2>&1; then look='timeout 2 getent'; fi
own=$($look ahostsv4 "$2" 2>/dev/null)
say own_address "${own%% *}"
say cpus "$(getconf _NPROCESSORS_ONLN 2>/dev/null || nproc 2>/dev/null)"
while read -r key value unit; do
  [ "$key" != MemTotal: ] || { say memory_kib "$value"; break; }
done 2>/dev/null </proc/meminfo
say clock "$(date +%s)"
read -r boot 2>/dev/null </proc/sys/kernel/random/boot_id && say boot_id "$boot"
say selinux "$(getenforce 2>/dev/null)"
folder=$1
while [ ! -e "$folder" ]; do folder=${folder%/*}; [ -n "$folder" ] || folder=/; done
df -Pk "$folder" 2>/dev/null | {
  read -r head && read -r disk size used free rest && say state_free_kib "$free"
}
for name in http_proxy https_proxy HTTP_PROXY HTTPS_PROXY; do
  eval "value=\\${$name-}"
  [ -z "$value" ] || say "proxy:$name" "$value"
done
exit 0
"""


def _parse_system(result: Result) -> System:
    said = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    free = whole(said.get("state_free_kib", ""))
    return System(
        hostname=said.get("hostname", ""),
        own_address=said.get("own_address", ""),
        machine=said.get("machine", ""),
        kernel=said.get("kernel", ""),
        cpus=whole(said.get("cpus", "")) or 0,
        memory_mib=(whole(said.get("memory_kib", "")) or 0) // 1024,
        clock=whole(said.get("clock", "")) or 0,
        boot_id=said.get("boot_id", ""),
        selinux=said.get("selinux", ""),
        state_free_mib=None if free is None else free // 1024,
        proxies=tuple(
            (key.removeprefix("proxy:"), value)
            for key, value in said.items()
            if key.startswith("proxy:")
        ),
    )


def system(state_root: str) -> Fact[System]:
    return Fact(name="system", command=script(_SYSTEM, state_root).within(20), parse=_parse_system)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Somebody who listens on a TCP port; pid and program where the host would tell us."""

    port: int
    address: str = ""
    pid: int | None = None
    program: str = ""

    def __str__(self) -> str:
        who = f"{self.program} (pid {self.pid})" if self.pid else "a program we may not see"
        return f"port {self.port} is taken by {who}"


_SS_USER = re.compile(r'\("(?P<program>[^"]*)",pid=(?P<pid>\d+)')


def _parse_listeners(result: Result) -> tuple[Listener, ...]:
    found: list[Listener] = []
    for line in result.stdout.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[0] != "LISTEN":
            continue
        address, _, port = fields[3].rpartition(":")
        user = _SS_USER.search(line)
        number = whole(port)
        if number is not None:
            found.append(
                Listener(
                    port=number,
                    address=address,
                    pid=whole(user["pid"]) if user else None,
                    program=user["program"] if user else "",
                )
            )
    return tuple(found)


# Without `ss`, /proc still knows the ports (state 0A), not who holds them. Its heading is left in:
# iproute2 before 4.5 has no flag against it.
_LISTENERS = """
if command -v ss >/dev/null 2>&1; then exec ss -l -t -n -p; fi
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
awk '$4 == "0A" {split($2, part, ":"); print part[length(part)]}' |
while read -r hex; do printf 'LISTEN 0 0 *:%d *:*\\n' "0x$hex"; done
"""

LISTENERS = Fact(
    name="listening ports",
    command=script(_LISTENERS, root=True).within(20),
    parse=_parse_listeners,
)


@dataclass(frozen=True, slots=True)
class Firewall:
    """A firewall that is switched on: `firewalld`, `ufw`, or none of the two."""

    name: str = ""


_FIREWALLS = ("firewalld", "ufw")
_FIREWALL = """
export LC_ALL=C
if command -v firewall-cmd >/dev/null 2>&1 && [ "$(firewall-cmd --state 2>/dev/null)" = running ]
then echo firewalld
elif command -v ufw >/dev/null 2>&1 && ufw status 2>/dev/null | grep -q '^Status: active'
then echo ufw
fi
exit 0
"""

FIREWALL = Fact(
    name="firewall",
    command=script(_FIREWALL, root=True).within(20),
    parse=lambda result: Firewall(next((n for n in _FIREWALLS if n in result.stdout.split()), "")),
)
