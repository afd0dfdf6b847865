"""CUDA MPS on a host: its control daemon's commands, folders and compute modes."""

from __future__ import annotations

from dataclasses import dataclass

from vllmdeploy.core.command import Command, script

CONTROL = "nvidia-cuda-mps-control"
PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
LOG_VARIABLE = "CUDA_MPS_LOG_DIRECTORY"
PERCENTAGE_VARIABLE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
PARTITION_VARIABLE = "CUDA_MPS_SM_PARTITION"
MARK_VARIABLE = "VLLMDEPLOY_MPS"
"""In the daemon's environment: the cluster that started it. Others' daemons are never touched."""

# A socket's path ends at 107 bytes, and the daemon adds a name of its own to the folder.
LONGEST_PIPE = 90
KEPT_LOG_BYTES = 10 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSpec:
    """One control daemon. `cards`: their UUIDs; none means all that the host has."""

    pipe: str
    log: str
    cluster: str
    cards: tuple[str, ...] = ()
    static: bool = False


# /tmp is everybody's: what another user has put there before us is not ours to write into.
_FOLDERS = """
umask 022
for folder in "$@"; do
  mkdir -p -- "$folder" || exit 1
  owner=$(stat -c %u -- "$folder") && me=$(id -u) || exit 1
  if [ -L "$folder" ] || [ "$owner" != "$me" ]; then
    echo "$folder belongs to uid $owner, and MPS would run as uid $me" >&2
    exit 1
  fi
  chmod 0755 -- "$folder" || exit 1
done
"""

# The daemon keeps its starter's files open, so they must not be pipes that somebody reads to the
# end; a file that is gone by then is as good.
_START = """
said=$(mktemp) || exit 1
"$@" < /dev/null > "$said" 2>&1
status=$?
cat "$said" >&2
rm -f "$said"
exit $status
"""

_ASK = """
printf '%s\\n' "$2" | CUDA_MPS_PIPE_DIRECTORY="$1" nvidia-cuda-mps-control
"""

# One old copy of a large log is kept; older files go.
_CLEAN = """
cd "$1" 2>/dev/null || exit 0
for log in control.log server.log; do
  [ -f "$log" ] && [ ! -L "$log" ] || continue
  [ "$(wc -c < "$log")" -le "$3" ] || mv -f "$log" "$log.1" || exit 1
done
find . -maxdepth 1 -type f -name '*.log*' -mtime "+$2" -exec rm -f {} +
"""


def folders(spec: DaemonSpec) -> Command:
    """Made, or found to be ours: clients of any user may enter, only we may write."""
    return script(_FOLDERS, spec.pipe, spec.log, root=True)


def clean_logs(log: str, *, days: int) -> Command:
    """Before a daemon starts, since a running one writes on into the file that was moved away."""
    return script(_CLEAN, log, str(days), str(KEPT_LOG_BYTES), root=True)


def start(spec: DaemonSpec) -> Command:
    variables = {
        "CUDA_VISIBLE_DEVICES": ",".join(spec.cards),
        PIPE_VARIABLE: spec.pipe,
        LOG_VARIABLE: spec.log,
        MARK_VARIABLE: spec.cluster,
    }
    words = tuple(f"{name}={value}" for name, value in variables.items() if value)
    # Whoever starts it may have narrowed his own view of the cards.
    unset = () if spec.cards else ("-u", "CUDA_VISIBLE_DEVICES")
    static = ("-S",) if spec.static else ()
    return script(_START, "env", *unset, *words, CONTROL, "-d", *static, root=True)


def ask(pipe: str, words: str) -> Command:
    """One line to the daemon of this pipe folder; its answer is what is printed."""
    return script(_ASK, pipe, words, root=True).within(20)


def percentage(pipe: str, percent: int) -> Command:
    return ask(pipe, f"set_default_active_thread_percentage {percent}")


def shut_server(pipe: str, server: int) -> Command:
    """At once, whatever its clients are doing."""
    return ask(pipe, f"shutdown_server {server} -f")


def partition(pipe: str, card: str, chunks: int) -> Command:
    return ask(pipe, f"sm_partition add {card} {chunks}")


def stop(pipe: str) -> Command:
    return ask(pipe, "quit")


def ended(pid: int) -> Command:
    """Succeeds once there is no such process."""
    return script('[ ! -d "/proc/$1" ]', str(pid), root=True)


def log_end(log: str) -> Command:
    return Command(("tail", "-n", "5", "--", f"{log}/control.log"), root=True)


def compute_mode(card: str, mode: str) -> Command:
    return Command(("nvidia-smi", "-i", card, "-c", mode.upper()), root=True)
