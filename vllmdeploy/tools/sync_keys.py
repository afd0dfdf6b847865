"""The key with which hosts of one cluster read each other's models, and nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.layout import Layout
from vllmdeploy.tools import files
from vllmdeploy.tools.ranges import FIND_GROWING, SHORT
from vllmdeploy.tools.rsync import Keys

PRIVATE, KNOWN_HOSTS, SERVE = "id_ed25519", "known_hosts", "serve.sh"
_PUBLIC = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]{68,100}")


def tag(cluster: str) -> str:
    """What marks our line in an authorized_keys file, and tells it from everybody else's."""
    return f"vllmdeploy:{cluster}"


def keys(layout: Layout) -> Keys:
    folder = layout.sync_secrets
    return Keys(
        private=f"{folder}/{PRIVATE}",
        known_hosts=f"{folder}/{KNOWN_HOSTS}",
        connections=layout.connections,
    )


_MAKE = """
umask 077
mkdir -p "${1%/*}" || exit 1
[ -s "$1" ] || { rm -f "$1" "$1.pub"; ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$1"; } || exit 1
cat "$1"
ssh-keygen -y -f "$1"
"""


def make(layout: Layout, cluster: str) -> Command:
    """Says the private key and then the public one; made where there is none yet."""
    return script(_MAKE, keys(layout).private, tag(cluster), root=True).within(30)


_HELD = """
[ -s "$1" ] || exit 0
cat "$1"
ssh-keygen -y -f "$1"
"""


@dataclass(frozen=True, slots=True)
class KeyPair:
    private: bytes
    public: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


def parse_make(result: Result) -> KeyPair | None:
    begin, end, rest = result.stdout.partition("-----END OPENSSH PRIVATE KEY-----\n")
    public = _PUBLIC.search(rest)
    return KeyPair((begin + end).encode(), public[0]) if end and public else None


def held(layout: Layout) -> Fact[KeyPair | None]:
    """The key pair, where it has been made before."""
    return Fact(
        name="sync key",
        command=script(_HELD, keys(layout).private, root=True).within(20),
        parse=parse_make,
    )


# The whole command of a peer. Its words are split, never evaluated; what is not known is refused.
# `s` among the short options would let the peer send other words later.
_SERVE = (
    """\
# vllmdeploy: hosts of this cluster may read models, and images on their way, by rsync or in ranges
# of files, and do nothing else. $1 is MODEL_PATH, $2 where images pass. What sshd was asked to run
# is in SSH_ORIGINAL_COMMAND.
set -f
refuse() { echo "vllmdeploy: refused: $1" >&2; exit 1; }
root=$(cd -P -- "$1" 2>/dev/null && pwd -P)
images=$(cd -P -- "${2:-/dev/null}" 2>/dev/null && pwd -P)
[ -n "$root$images" ] || refuse "no model folder here"
: "${root:=/dev/null}" "${images:=/dev/null}"
"""
    + FIND_GROWING
    + """
enter() {
  case $1 in "" | [.-]* | *..* | *[!A-Za-z0-9._-]*) refuse "a name";; esac
  cd -P -- "$root/$1" 2>/dev/null || cd -P -- "$root/.incoming/$1" 2>/dev/null \\
    || cd -P -- "$root/$1" 2>/dev/null || cd -P -- "$images/.incoming/$1" 2>/dev/null \\
    || refuse "no model $1 here"
  here=$PWD
  case $here in
    "$root/$1" | "$root/.incoming/$1" | "$images/.incoming/$1") ;;
    *) refuse "$1 is a link out of the model folder";;
  esac
}
# The file is open as stdin. A program less for every range, where it is no link.
give() {
  if [ -L "$file" ]; then where=$(readlink -f -- "$file")
  else where=$(cd -P -- "${file%/*}" && echo "$PWD/${file##*/}"); fi
  case $where in
    "$here"/*) ;;
    *) refuse "$path is no file of the model";;
  esac
  size=$(stat -L -c %s /proc/self/fd/0) && [ $((start + count)) -le "$size" ] || refuse "$path """
    + SHORT
    + """"
  dd bs=65536 skip=$((start / 65536)) count="$count" iflag=count_bytes 2>/dev/null || exit 1
  given=yes
}
set -- ${SSH_ORIGINAL_COMMAND-}
if [ "${1-}" = vllmdeploy-ranges ]; then
  [ $# = 2 ] || refuse "ranges"
  exec 4<&0
  while IFS= read -r asked <&4; do
    enter "$2"
    start=${asked%% *} asked=${asked#* }
    count=${asked%% *} path=${asked#* } given=
    for number in "$start" "$count"; do
      case $number in "" | *[!0-9]* | 0?* | ????????????????*) refuse "a range";; esac
    done
    [ $((start % 65536)) = 0 ] || refuse "a range"
    case /$path/ in *//* | */./* | */../*) refuse "a name";; esac
    # A file that has just been put together is in another place when it is opened.
    for try in 1 2 3; do
      growing "$path"
      [ ! -f "$file" ] || { give; } < "$file" && break
    done
    [ -n "$given" ] || refuse "$path is no file of the model"
  done
  exit 0
fi
[ "${1-} ${2-} ${3-}" = "rsync --server --sender" ] || refuse "only rsync may read here"
shift 3
options=
while [ $# -gt 2 ]; do
  case $1 in
    --timeout=*[!0-9]* | --bwlimit=*[!0-9]* | --info=*[!A-Z0-9,]*) refuse "an option";;
    --timeout=* | --bwlimit=* | --info=* | --append | --inplace | --files-from=- | --from0) ;;
    --* | *[!A-Za-z0-9.-]*) refuse "an option";;
    -*) letters=${1%%e.*}; case ${letters#-} in *[!LRcvW]*) refuse "an option";; esac;;
    *) refuse "more than one folder";;
  esac
  options="$options $1"
  shift
done
name=${2-}
name=${name%/}
case ${1-}:$name in
  .:*) ;;
  *) refuse "more than one folder";;
esac
enter "$name"
exec rsync --server --sender $options . ./
"""
)


def serve_script(layout: Layout) -> Command:
    return files.write(f"{layout.sync}/{SERVE}", _SERVE.encode(), mode="0755")


def authorized_line(layout: Layout, cluster: str, model_path: str, public: str) -> str:
    """One line of authorized_keys: this key only reads, without a terminal or a tunnel."""
    words = shlex.join(("sh", f"{layout.sync}/{SERVE}", model_path, layout.images))
    escaped = words.replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,command="{escaped}" {public} {tag(cluster)}'


# As the SSH user, in its own home. A new file takes the old one's place, so that nobody is ever
# locked out by half a file; a link stays one.
_REWRITE = """
umask 077
mkdir -p "$HOME/.ssh" && cd "$HOME/.ssh" || exit 1
file=$(readlink -f authorized_keys) || file=$PWD/authorized_keys
[ -f "$file" ] || : > "$file" || exit 1
cp -p "$file" "$file.vllmdeploy" || exit 1
{ awk -v "tag=$1" '$NF != tag' "$file"; cat; } > "$file.vllmdeploy" \\
  && mv -f "$file.vllmdeploy" "$file"
"""


def authorize(cluster: str, line: str) -> Command:
    return script(_REWRITE, tag(cluster), stdin=f"{line}\n".encode()).within(20)


def withdraw(cluster: str) -> Command:
    """Takes our line out of authorized_keys again; all others stay as they are."""
    gone = '[ -f "$HOME/.ssh/authorized_keys" ] || exit 0\n'
    return script(gone + _REWRITE.replace("; cat;", ";"), tag(cluster)).within(20)


_AUTHORIZED = """
file=$HOME/.ssh/authorized_keys
[ -f "$file" ] || exit 0
line=$(awk -v "tag=$1" '$NF == tag' "$file")
[ -z "$line" ] || printf '%s' "$line" | sha256sum | head -c 64
"""


def authorized(cluster: str) -> Fact[str]:
    """The sha256 of our line in authorized_keys; nothing where there is none."""
    return Fact(
        name="authorized sync key",
        command=script(_AUTHORIZED, tag(cluster)).within(20),
        parse=lambda result: result.stdout.strip(),
    )


def known_hosts(host_keys: Mapping[str, Sequence[str]]) -> bytes:
    """Host keys by the address under which they are asked for; the same however they are found."""
    lines = (f"{ip} {key}\n" for ip, found in sorted(host_keys.items()) for key in found)
    return "".join(lines).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peering:
    """What a host has for talking to others: programs, its sshd's port and host keys."""

    user: str = ""
    port: int = 22
    rsync: str = ""
    ssh: bool = False
    keygen: bool = False
    host_keys: tuple[str, ...] = ()


# The host itself says its keys, over a connection that is trusted already: no one in between. One
# key is enough for those who know it, and every further one is a connection with all its sums.
_PEERING = """
printf 'user %s\\n' "$(id -un)"
set -- ${SSH_CONNECTION-}
ip=${3:-127.0.0.1} port=${4:-22}
printf 'port %s\\n' "$port"
printf 'rsync %s\\n' "$(rsync --version 2>/dev/null | head -n 1)"
command -v ssh >/dev/null 2>&1 && echo ssh
command -v ssh-keygen >/dev/null 2>&1 && echo keygen
keys() {
  ssh-keyscan -T 4 -p "$port" -t ed25519 "$ip" | grep . ||
    ssh-keyscan -T 4 -p "$port" "$ip" | grep . ||
    cat /etc/ssh/ssh_host_*_key.pub
}
keys 2>/dev/null |
  grep -o '\\(ssh\\|ecdsa\\|sk\\)-[a-z0-9@.-]* AAAA[A-Za-z0-9+/=]*' | sed 's/^/key /'
exit 0
"""


def _parse_peering(result: Result) -> Peering:
    said: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest)
    port = said.get("port", [""])[0]
    return Peering(
        user=said.get("user", [""])[0],
        port=int(port) if port.isdigit() else 22,
        rsync=said.get("rsync", [""])[0],
        ssh="ssh" in said,
        keygen="keygen" in said,
        host_keys=tuple(dict.fromkeys(said.get("key", []))),
    )


PEERING = Fact(name="peering", command=script(_PEERING).within(20), parse=_parse_peering)
