"""rsync between two hosts: the receiving one asks, verifies what came, and is the only writer."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, script
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files import FASTEST_SHA256

# The first with --info and --outbuf.
OLDEST = (3, 1)
# What rsync ends with when it cannot write: the disk is full, or broken.
FILE_ERROR = 11
MOVED = "moved"

_SILENT_S = 20.0
# A resumed file is first read through on both sides, in silence.
_SLOWEST_READ = 50_000_000
# The fastest for machines with AES instructions first; every sshd since 6.5 has one of them.
_CIPHERS = (
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,"
    "aes256-ctr,aes128-ctr"
)
# ssh's buffers come and go with every packet, and glibc gives their memory back each time: keeping
# it spares the receiving end a seventh of its processors' time.
KEEPS_MEMORY = "export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=67108864"
# A socket's path may have 107 bytes, of which ssh takes 17 while it makes one.
_LONGEST_SOCKET = 90
_KEPT_OPEN_S = 30
_VERSION = re.compile(r"rsync\s+version\s+v?(\d+)\.(\d+)")
_PROGRESS = re.compile(r"\s*(\d+)\s+\d+%\s")
_RECEIVED = re.compile(r"sent \d+ bytes  received (\d+) bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """How other hosts reach this one's sshd: an address on the data network, and whose keys."""

    ip: str
    user: str
    port: int = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Files on the receiving host: the cluster's private key, the sources' host keys, and a folder
    for the sockets of connections that are used again."""

    private: str
    known_hosts: str
    connections: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One piece on its way. `checksum`: what is there may be wrong anywhere, compare it all.
    `connection`: pulls that name the same one share it, one after another."""

    place: ModelPlace
    number: int
    paths: Sequence[str]
    size: int
    resumes: bool = False
    checksum: bool = False
    limit_kib_s: int | None = None
    connection: str = ""


def usable(version: str) -> bool:
    """Whether `rsync --version` is new enough."""
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST


def transport(road: Road, keys: Keys, connection: str = "") -> str:
    """The words of ssh, quoted as for a shell."""
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": keys.known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": road.ip,
        "ClearAllForwardings": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "Ciphers": _CIPHERS,
        "LogLevel": "ERROR",
        **_shared(keys, connection),
    }
    set_ = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    ssh = ("ssh", "-F", "/dev/null", "-i", keys.private, "-p", str(road.port), "-l", road.user)
    return shlex.join((*ssh, *set_))


def _shared(keys: Keys, connection: str) -> dict[str, str]:
    """A tenth of a second of both ends' processors goes into every new connection: the next pull
    finds this one open."""
    path = f"{keys.connections}/{hashlib.sha256(connection.encode()).hexdigest()[:16]}"
    if not connection or len(path) > _LONGEST_SOCKET or "%" in path:
        return {}
    return {"ControlMaster": "auto", "ControlPath": path, "ControlPersist": str(_KEPT_OPEN_S)}


# A pull that outlived its run would be a second writer: whoever comes next ends it first. It is
# told by its working folder, for its number may belong to another process by now.
ENDS_STALE_PULL = """
ours() { [ "$(readlink "/proc/$1/cwd" 2>/dev/null)" = "$PWD" ]; }
if [ -f "$own.pid" ] && read -r pid < "$own.pid" && ours "$pid"; then
  kill "$pid"; tries=0
  while ours "$pid" && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
  if ours "$pid"; then kill -KILL "$pid"; fi
fi
"""

# $1 the incoming folder, $2 the piece's number, $3 ssh's words, $4 the folder of its sockets, then
# rsync's words less the list; paths on stdin.
_PULL = (
    FASTEST_SHA256
    + KEEPS_MEMORY
    + """
umask 022; export LC_ALL=C
mkdir -p "$1/.vllmdeploy/pulls" && cd -P -- "$1" || exit 1
export VLLMDEPLOY_SSH="$3"
mkdir -p -m 700 "$4" || exit 1
own=.vllmdeploy/pulls/$2; shift 4
"""
    + ENDS_STALE_PULL
    + """
tr '\\n' '\\0' > "$own.list" || exit 1
rsync --files-from="$own.list" --from0 "$@" ./ </dev/null 2>"$own.err" &
echo $! > "$own.pid"
wait $!; status=$?
rm -f "$own.pid"
cat "$own.err" >&2
rm -f "$own.err"
[ $status = 0 ] || exit $status
echo moved
sha256 < "$own.list" || exit 1
rm -f "$own.list"
"""
)


# The connection outlives the pull that made it, so it may not stand in the folder.
_SSH = """sh -c 'cd / && eval "exec $VLLMDEPLOY_SSH \\"\\$@\\""' ssh"""


def pull(wanted: Pull, road: Road, keys: Keys) -> Command:
    """Says how far it is, then `moved`, then the sha256 of every file as it is now."""
    silent_s = _SILENT_S
    if wanted.resumes or wanted.checksum:
        silent_s += wanted.size / _SLOWEST_READ
    argv = (
        *("--inplace", "--checksum" if wanted.checksum else "--append-verify", "--copy-links"),
        *("--info=progress2,stats1", "--no-human-readable", "--outbuf=L"),
        f"--timeout={silent_s:.0f}",
        *((f"--bwlimit={wanted.limit_kib_s}",) if wanted.limit_kib_s else ()),
        *("-e", _SSH),
        f"{road.ip}:{wanted.place.name}/",
    )
    names = "".join(f"{path}\n" for path in wanted.paths).encode()
    ssh = transport(road, keys, wanted.connection)
    first = (wanted.place.incoming, str(wanted.number), ssh, keys.connections)
    text = script(_PULL, *first, *argv, stdin=names, root=True)
    return text.within(float("inf"))


# Pulls of a run that is gone are ended; rsync's temporary files, and lists, are swept.
_SWEEP = """
umask 022
[ ! -L "$1" ] && mkdir -p "$1/.vllmdeploy/pulls" && cd -P -- "$1" || exit 1
for file in .vllmdeploy/pulls/*.pid; do
  pid=$(cat "$file" 2>/dev/null) || continue
  ours() { [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$PWD" ]; }
  if ours; then kill "$pid"; sleep 0.2; fi
  if ours; then sleep 2; fi
  if ours; then kill -KILL "$pid"; fi
done
rm -rf .vllmdeploy/pulls
find . -type f -name '.*.??????' -exec rm -f {} +
"""


def sweep(place: ModelPlace) -> Command:
    """Make the incoming folder, or what another run left of it, ready for a first pull."""
    return script(_SWEEP, place.incoming, root=True).within(60)


def progress(line: str) -> int | None:
    """The bytes that are over, of a line of rsync's progress."""
    found = _PROGRESS.match(line)
    return int(found[1]) if found else None


def received(line: str) -> int | None:
    """The bytes that came over the wire, of rsync's last line."""
    found = _RECEIVED.match(line)
    return int(found[1]) if found else None


# A model is read where it is whole, else where it is being put together. It may be renamed from
# the one to the other right now; the folder it is in stays what it is.
ENTER = """
set -f
cd -P -- "$1/$2" 2>/dev/null || cd -P -- "$1/.incoming/$2" 2>/dev/null || cd -P -- "$1/$2" || exit 1
"""


def send_file(place: ModelPlace, path: str, offset: int) -> Command:
    """A file's bytes from `offset` on, for hosts without rsync."""
    text = ENTER + 'exec tail -c "+$4" -- "$3"'
    return script(text, place.root, place.name, f"./{path}", str(offset + 1), root=True).within(
        float("inf")
    )


def send_files(place: ModelPlace, paths: Sequence[str]) -> Command:
    """Many files as one stream."""
    names = "".join(f"{path}\n" for path in paths).encode()
    # 1: somebody else gave the folder its name meanwhile. The hashes say whether it matters.
    text = ENTER + "tar -chf - -T - || [ $? = 1 ]"
    return script(text, place.root, place.name, stdin=names, root=True).within(float("inf"))


_TAKE_FILE = """
umask 022
cd -P -- "$1" || exit 1
case $2 in */*) mkdir -p -- "${2%/*}" || exit 1;; esac
[ "$3" = 0 ] && : > "$2"
exec cat >> "$2"
"""


def take_file(place: ModelPlace, path: str, offset: int) -> Command:
    return script(_TAKE_FILE, place.incoming, f"./{path}", str(offset), root=True).within(
        float("inf")
    )


def take_files(place: ModelPlace) -> Command:
    text = 'umask 022; cd -P -- "$1" && exec tar -xof -'
    return script(text, place.incoming, root=True).within(float("inf"))


def size_of(place: ModelPlace, path: str) -> Command:
    """How much of a file is there, 0 for none."""
    text = 'stat -c %s -- "$1" 2>/dev/null || echo 0'
    return script(text, f"{place.incoming}/{path}", root=True).within(30)
