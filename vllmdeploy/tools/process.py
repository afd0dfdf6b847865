"""A warden as a detached process of a host: started, found, stopped and forgotten."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact

NODE_FILE = "node.json"

# Reads who is meant by the run folder $1. A pid alone may be somebody else's by now; pid, boot
# and start time name one process for good.
_ALIVE = r"""
alive() {
  pid='' started='' boot=''
  read -r pid started boot 2>/dev/null < "$1/node.pid" || return 1
  case $pid in ''|*[!0-9]*) return 1;; esac
  [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] || return 1
  stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
  set -- ${stat##*) }
  [ "$1" != Z ] && [ "${20}" = "$started" ]
}
"""

# Ray's sessions and the engine's sockets lie below TMPDIR, and nothing there goes with who made it.
# Its name is short: a Unix address has 107 characters, and Ray adds 70 of its own.
_TEMPORARY = r"""
drop_temporary() {
  read -r temporary 2>/dev/null < "$1/temporary" || return 0
  case $temporary in
    /tmp/vllmdeploy.*/*) ;;
    /tmp/vllmdeploy.*) [ -L "$temporary" ] || [ ! -O "$temporary" ] || rm -rf -- "$temporary";;
  esac
  rm -f "$1/temporary"
}
"""

# The inner shell's pid stays the warden's through both `exec`s, so it can be written beforehand.
_START = (
    _ALIVE
    + _TEMPORARY
    + r"""
run=$1
if alive "$run"; then exit 0; fi
rm -f "$run/node.pid"
drop_temporary "$run"
export TMPDIR="$(mktemp -d /tmp/vllmdeploy.XXXXXX)"
[ -d "$TMPDIR" ] && echo "$TMPDIR" > "$run/temporary" || exit 1
setsid sh -c '
  stat=$(cat "/proc/$$/stat") && boot=$(cat /proc/sys/kernel/random/boot_id) || exit 1
  run=$1
  set -- ${stat##*) }
  echo "$$ ${20} $boot" > "$run/node.pid.new" && mv -f "$run/node.pid.new" "$run/node.pid" || exit 1
  exec sh "$run/start.sh"
' sh "$run" < /dev/null > /dev/null 2> "$run/warden.err" &
shell=$!
waits=0
until alive "$run" && grep -q "\"pid\": $pid," "$run/status.json" 2>/dev/null; do
  waits=$((waits + 1))
  if [ "$waits" -gt 300 ] || ! kill -0 "$shell" 2>/dev/null; then
    cat "$run/warden.err" >&2
    exit 1
  fi
  sleep 0.1
done
"""
)

_MAKE = (
    r"""
umask 077
mkdir -p "$1" && cat > "$1/node.json.new" && printf '%s' "$3" > "$1/start.sh.new" \
  && [ "$(wc -c < "$1/node.json.new")" -eq "$2" ] \
  && mv -f "$1/start.sh.new" "$1/start.sh" && mv -f "$1/node.json.new" "$1/node.json" || exit 1
"""
    + _START
)

# What a killed warden left carries its mark in the environment it was started with; a process
# that wrote its title over that is found by the session it shares with one that did not.
_STOP = (
    _ALIVE
    + _TEMPORARY
    + r"""
run=$1 limit=$2
sessions() {
  for file in $(grep -lzxF -- "VLLMDEPLOY_WARDEN=$run" /proc/[0-9]*/environ 2>/dev/null); do
    stat=$(cat "${file%environ}stat" 2>/dev/null) || continue
    set -- ${stat##*) }
    [ "$1" = Z ] || echo "$4"
  done | sort -u
}
end_session() {
  wanted=$1
  for file in /proc/[0-9]*/stat; do
    stat=$(cat "$file" 2>/dev/null) || continue
    set -- ${stat##*) }
    if [ "$4" = "$wanted" ]; then kill -KILL "${stat%% *}" 2>/dev/null; fi
  done
}
if alive "$run"; then
  kill -TERM "$pid" 2>/dev/null
  waits=$((limit * 10))
  while [ "$waits" -gt 0 ] && alive "$run"; do sleep 0.1; waits=$((waits - 1)); done
  if alive "$run"; then kill -KILL "$pid" 2>/dev/null; fi
fi
waits=100
while left=$(sessions) && [ -n "$left" ]; do
  for session in $left; do end_session "$session"; done
  waits=$((waits - 1))
  if [ "$waits" -eq 0 ]; then echo "sessions that do not end:" $left >&2; exit 1; fi
  sleep 0.1
done
rm -f "$run/node.pid"
drop_temporary "$run"
"""
)

# Folders in it are others': what a gateway routes to, what was uploaded to it.
_REMOVE = """
[ -d "$1" ] || exit 0
find "$1" -mindepth 1 -maxdepth 1 ! -type d -exec rm -f -- {} + || exit 1
rmdir "$1" 2>/dev/null || :
"""

_FOUND = (
    _ALIVE
    + r"""
for file in "$1"/*/node.json; do
  [ -r "$file" ] || continue
  run=${file%/*}
  if alive "$run"; then running=$pid; else running=0; fi
  printf '@@node@@%s %s\n' "$running" "${run##*/}"
  cat "$file"
  echo
done
exit 0
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachedSpec:
    """`run` is the node's run folder; `argv` starts with the interpreter."""

    run: str
    argv: tuple[str, ...]
    labels: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """One of our nodes on a host; pid 0 says that its warden does not run."""

    name: str
    pid: int
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    problem: str = ""


def make(spec: DetachedSpec) -> Command:
    """Write down what it is, then start it; one that runs already goes on running."""
    document = json.dumps({"labels": dict(spec.labels), "argv": list(spec.argv)}, indent=1)
    words = (*(f"{name}={value}" for name, value in spec.environment.items()), *spec.argv)
    launch = f"exec env {shlex.join(words)}\n"
    content = document.encode()
    made = script(_MAKE, spec.run, str(len(content)), launch, stdin=content, root=True)
    return made.within(60)


def start(run: str) -> Command:
    """Start again what was made before: after a reboot, or after its warden was killed."""
    return script(_START, run, root=True).within(60)


def stop(run: str, *, stop_s: int) -> Command:
    """SIGTERM, time to end in order, then SIGKILL to it and to all it started."""
    return script(_STOP, run, str(stop_s), root=True).within(stop_s + 30.0)


def remove(run: str) -> Command:
    """What makes it a node, and nothing else: a gateway that is made anew in the same place finds
    its fleet and its uploads again, as it does under Docker and systemd."""
    return script(_REMOVE, run, root=True)


def found(runs: str) -> Fact[tuple[Detached, ...]]:
    """Every detached node below a state folder's `run`."""
    return Fact(
        name="detached nodes",
        command=script(_FOUND, runs, root=True).within(20),
        parse=_parse_found,
    )


def _parse_found(result: Result) -> tuple[Detached, ...]:
    parts = result.stdout.split("@@node@@")[1:]
    return tuple(_detached(*part.partition("\n")[::2]) for part in parts)


def _detached(head: str, document: str) -> Detached:
    pid, _, name = head.partition(" ")
    running = int(pid) if pid.isdigit() else 0
    try:
        loaded: object = json.loads(document)
    except ValueError as error:
        return Detached(name=name, pid=running, problem=f"{NODE_FILE} cannot be read: {error}")
    labels = cast("dict[str, object]", loaded).get("labels") if isinstance(loaded, dict) else None
    if not isinstance(labels, dict):
        return Detached(name=name, pid=running, problem=f"{NODE_FILE} has no labels")
    texts = {str(key): str(value) for key, value in cast("dict[object, object]", labels).items()}
    return Detached(name=name, pid=running, labels=texts)
