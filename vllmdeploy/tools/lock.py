"""The fleet's lock: a folder on the head, made by `mkdir`, which either makes it or fails."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact

HEARTBEAT_S = 10
STALE_AFTER_S = 60
_TAKEN = 75  # what `take` exits with when somebody else has the lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock: a person at a machine, since when, to do what."""

    who: str
    machine: str
    boot_id: str
    pid: int
    what: str
    nonce: str

    def __str__(self) -> str:
        return f"{self.who}@{self.machine} (pid {self.pid}), doing `{self.what}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    """The lock as the head shows it; both ages are by the head's own clock."""

    held: bool
    holder: Holder | None = None
    age_s: int = 0
    silent_s: int = 0

    @property
    def stale(self) -> bool:
        return self.held and self.silent_s > STALE_AFTER_S


# The folder is made with its record inside and then renamed: nobody ever sees a lock that does
# not say whose it is. `mv -T` refuses to replace a folder that is not empty.
_TAKE = (
    'mkdir -p "${1%/*}" && mkdir "$1.$2" && cat > "$1.$2/holder" && : > "$1.$2/heartbeat"'
    ' && mv -T "$1.$2" "$1" 2>/dev/null || { rm -rf "$1.$2"; exit 75; }'
)


def take(path: str, holder: Holder) -> Command:
    record = json.dumps(asdict(holder)).encode()
    return script(_TAKE, path, holder.nonce, stdin=record, root=True).within(20)


def taken_by_another(result: Result) -> bool:
    return result.status == _TAKEN


_OURS = '[ "$(sed -n \'s/.*"nonce": "\\([0-9a-f]*\\)".*/\\1/p\' "$1/holder" 2>/dev/null)" = "$2" ]'


def beat(path: str, nonce: str) -> Command:
    """Says that the holder is alive; fails when the lock is no longer its own."""
    return script(f'{_OURS} && : > "$1/heartbeat"', path, nonce, root=True).within(20)


def release(path: str, nonce: str) -> Command:
    """Gives the lock back; a lock that somebody else took meanwhile stays."""
    return script(f'{_OURS} || exit 0; rm -rf "$1"', path, nonce, root=True).within(20)


def break_(path: str) -> Command:
    return Command(("rm", "-rf", "--", path), root=True)


_STATE = """
[ -d "$1" ] || { echo free; exit 0; }
now=$(date +%s)
echo "held $((now - $(stat -c %Y "$1/holder"))) $((now - $(stat -c %Y "$1/heartbeat")))"
cat "$1/holder"
"""


def _parse_state(result: Result) -> LockState:
    first, _, rest = result.stdout.partition("\n")
    words = first.split()
    if words[:1] != ["held"]:
        return LockState(held=False)
    ages = [int(word) if word.lstrip("-").isdigit() else 0 for word in words[1:3]]
    try:
        holder = Holder(**cast("dict[str, Any]", json.loads(rest)))
    except (ValueError, TypeError):
        holder = None
    return LockState(
        held=True,
        holder=holder,
        age_s=ages[0] if ages else 0,
        silent_s=ages[1] if len(ages) > 1 else 0,
    )


def state(path: str) -> Fact[LockState]:
    return Fact(name="lock", command=script(_STATE, path, root=True).within(20), parse=_parse_state)
