"""What MPS does on a host now: every control daemon, its servers, their clients, its log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.command import Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import whole
from vllmdeploy.tools.mps import CONTROL

FAULT = "FAULT"
DEFAULT_PIPE = "/tmp/nvidia-mps"  # noqa: S108 - NVIDIA's own default
DEFAULT_LOG = "/var/log/nvidia-mps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A process that computes through a server; `container`: Docker's id of where it lives;
    `node`: the node of ours whose warden started it."""

    pid: int
    uid: int | None = None
    program: str = ""
    container: str = ""
    node: str = ""

    def __str__(self) -> str:
        return f"{self.program or 'process'} (pid {self.pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    pid: int
    uid: int | None = None
    status: str = ""
    percentage: str = ""
    clients: tuple[Client, ...] = ()
    fault: str = ""
    """The last line of the log in which this server names a fault."""

    @property
    def faulted(self) -> bool:
        return FAULT in self.status.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One control daemon. `cards` as it was told them: UUIDs or numbers; none: all."""

    pid: int
    uid: int | None
    pipe: str
    log: str = ""
    cards: tuple[str, ...] = ()
    mark: str = ""
    static: bool = False
    percentage: str = ""
    servers: tuple[Server, ...] = ()
    partitions: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    problem: str = ""

    @property
    def clients(self) -> tuple[Client, ...]:
        return tuple(client for server in self.servers for client in server.clients)

    def __str__(self) -> str:
        who = "unknown" if self.uid is None else str(self.uid)
        return f"an MPS daemon of uid {who} (pid {self.pid}, {self.pipe})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mps:
    """One host. `modes`: compute modes by card; `saved`: those from before we changed them."""

    installed: bool = False
    daemons: tuple[Daemon, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict[str, str])
    saved: Mapping[str, str] = field(default_factory=dict[str, str])

    def at(self, pipe: str) -> Daemon | None:
        return next((one for one in self.daemons if one.pipe == pipe), None)


# `timeout` keeps a server that hangs in a fault from holding the whole answer up.
_FOUND = """
if timeout -k 1 1 true 2>/dev/null; then bounded() { timeout -k 1 5 "$@"; }
else bounded() { "$@"; }; fi
ask() { printf '%s\\n' "$2" | CUDA_MPS_PIPE_DIRECTORY=$1 bounded nvidia-cuda-mps-control 2>&1; }
uid_of() { sed -n 's/^Uid:[^0-9]*\\([0-9]*\\).*/\\1/p' "/proc/$1/status" 2>/dev/null; }
of() { tr '\\0' '\\n' < "/proc/$1/environ" 2>/dev/null | sed -n "s/^$2=//p" | head -n 1; }
node_of() {
  up=$1 steps=0
  while [ "${up:-0}" -gt 1 ] && [ $steps -lt 20 ]; do
    words=$(tr '\\0' ' ' < "/proc/$up/cmdline" 2>/dev/null)
    case $words in *' -m vllmdeploy.node.warden --name '*)
      words=${words#* -m vllmdeploy.node.warden --name }
      printf %s "${words%% *}"
      return;;
    esac
    up=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$up/status" 2>/dev/null) steps=$((steps + 1))
  done
}
say() { printf '@@%s@@%s\\n' "$1" "$2"; }
server() {
  say server "$2"
  say server-uid "$(uid_of "$2")"
  say status "$(ask "$1" "get_server_status $2" | tail -n 1)"
  say server-percentage "$(ask "$1" "get_active_thread_percentage $2" | tail -n 1)"
  for client in $(ask "$1" "get_client_list $2"); do
    case $client in *[!0-9]*) continue;; esac
    container=$(grep -oE '[0-9a-f]{64}' "/proc/$client/cgroup" 2>/dev/null | tail -n 1)
    where="$container:$(node_of "$client")"
    say client "$client:$(uid_of "$client"):$where:$(cat "/proc/$client/comm" 2>/dev/null)"
  done
  say fault "$(grep " $2\\]" "$3/server.log" 2>/dev/null | grep -iE 'fatal|fault' | tail -n 1)"
}
daemon() {
  pipe=$(of "$1" CUDA_MPS_PIPE_DIRECTORY) log=$(of "$1" CUDA_MPS_LOG_DIRECTORY)
  pipe=${pipe:-/tmp/nvidia-mps} log=${log:-/var/log/nvidia-mps}
  other=$(cat "$pipe/nvidia-cuda-mps-control.pid" 2>/dev/null)
  case $other in ''|*[!0-9]*) ;; *)
    # What a daemon has forked is the daemon until it has become a server.
    other_is=$(cat "/proc/$other/comm" 2>/dev/null)
    if [ "$other" != "$1" ] && [ "$other_is" = nvidia-cuda-mps ]; then return; fi;;
  esac
  say daemon "$1"
  if [ ! -r "/proc/$1/environ" ]; then say hidden yes; fi
  say pipe "$pipe"; say log "$log"; say uid "$(uid_of "$1")"
  say cards "$(of "$1" CUDA_VISIBLE_DEVICES)"
  say mark "$(of "$1" VLLMDEPLOY_MPS)"
  if servers=$(ask "$pipe" get_server_list); then
    say percentage "$(ask "$pipe" get_default_active_thread_percentage | tail -n 1)"
    case $2 in *' -S'*|*--static-partitioning*)
      say static yes; ask "$pipe" lspart | sed 's/^/@@partition@@/';;
    esac
    for one in $servers; do
      case $one in *[!0-9]*) ;; *) server "$pipe" "$one" "$log";; esac
    done
  else say problem "$(printf '%s' "$servers" | tail -n 1)"; fi
  for file in control.log server.log; do
    tail -n "$lines" "$log/$file" 2>/dev/null | sed "s/^/@@line@@$file: /"
  done
}
lines=$2
if command -v nvidia-cuda-mps-control >/dev/null 2>&1; then say installed yes; fi
for comm in /proc/[0-9]*/comm; do
  read -r name 2>/dev/null < "$comm" && [ "$name" = nvidia-cuda-mps ] || continue
  pid=${comm%/comm} pid=${pid#/proc/}
  argv=$(tr '\\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null)
  case $argv in
    *nvidia-cuda-mps-control\\ *-[df]*) daemon "$pid" "$argv";;
  esac
done
bounded nvidia-smi --query-gpu=uuid,compute_mode --format=csv,noheader 2>/dev/null |
  sed -n 's/^\\(GPU-[^,]*\\), *\\(.*\\)/@@mode@@\\1 \\2/p'
sed 's/^/@@saved@@/' "$1" 2>/dev/null
exit 0
"""

_LINE = re.compile(r"@@([a-z-]{1,20})@@(.*)")


def found(saved: str, *, lines: int = 0) -> Fact[Mps]:
    """`saved`: our file of compute modes; `lines`: how many of each log."""
    return Fact(
        name="CUDA MPS",
        command=script(_FOUND, saved, str(lines), root=True).within(40),
        parse=_parse,
        program=CONTROL,
    )


def saved_modes(root: str) -> str:
    """Where a host keeps the compute modes that its cards had before MPS."""
    return f"{root}/mps/compute-modes"


def _parse(result: Result) -> Mps:
    said = [(match[1], match[2].strip()) for match in map(_LINE.match, _lines(result)) if match]
    return Mps(
        installed=("installed", "yes") in said,
        daemons=tuple(sorted(map(_daemon, _parts(said, "daemon")), key=lambda one: one.pipe)),
        modes=_pairs(value for name, value in said if name == "mode"),
        saved=_pairs(value for name, value in said if name == "saved"),
    )


def _lines(result: Result) -> list[str]:
    return result.stdout.split("\n")


def _pairs(values: Iterable[str]) -> dict[str, str]:
    return dict(value.split(" ", 1) for value in values if " " in value)


Said = list[tuple[str, str]]


def _parts(said: Said, name: str) -> list[Said]:
    """What was said from each `name` on, up to the next."""
    parts: list[Said] = []
    for one in said:
        if one[0] == name:
            parts.append([])
        if parts:
            parts[-1].append(one)
    return parts


def _daemon(said: Said) -> Daemon:
    first = dict(reversed(said))
    hidden = "hidden" in first
    return Daemon(
        pid=whole(first["daemon"]) or 0,
        uid=whole(first.get("uid", "")),
        pipe="a folder that only its user sees" if hidden else first.get("pipe", DEFAULT_PIPE),
        log=first.get("log", DEFAULT_LOG),
        cards=tuple(card for card in first.get("cards", "").split(",") if card),
        mark=first.get("mark", ""),
        static="static" in first,
        percentage=_percentage(first.get("percentage", "")),
        servers=tuple(map(_server, _parts(said, "server"))),
        partitions=_partitions(said),
        lines=tuple(value for name, value in said if name == "line"),
        problem=first.get("problem", ""),
    )


def _server(said: Said) -> Server:
    first = dict(reversed(said))
    return Server(
        pid=whole(first["server"]) or 0,
        uid=whole(first.get("server-uid", "")),
        status=first.get("status", ""),
        percentage=_percentage(first.get("server-percentage", "")),
        clients=tuple(_client(value) for name, value in said if name == "client"),
        fault=first.get("fault", ""),
    )


def _client(value: str) -> Client:
    pid, uid, container, node, program = value.split(":", 4)
    return Client(
        pid=whole(pid) or 0, uid=whole(uid), program=program, container=container, node=node
    )


def _percentage(text: str) -> str:
    """`100.0` is 100; what is no number at all (an old daemon's complaint) is nothing."""
    return f"{float(text):g}" if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text) else ""


_PARTITION = re.compile(r"GPU-[0-9A-Fa-f-]{1,60}/[\w.=+-]{1,80}")


def partitions(text: str) -> tuple[str, ...]:
    """The names of static partitions in what `lspart` or `sm_partition add` printed."""
    return tuple(dict.fromkeys(_PARTITION.findall(text)))


def _partitions(said: Said) -> tuple[str, ...]:
    return partitions("\n".join(value for name, value in said if name == "partition"))
