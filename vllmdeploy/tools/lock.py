"""The fleet's lock: a folder on the head, made by `mkdir`, which either makes it or fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import json_object, whole

HEARTBEAT_S = 10
STALE_AFTER_S = 60
_TAKEN = 75  # what `take` exits with when somebody else has the lock
_LOST = 76  # what `beat` exits with when it is no longer ours


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
# not say whose it is. `mv -T` refuses to replace a folder that is not empty. It may also fail
# because the holder is leaving right then, so a lock that is gone afterwards is tried again.
_TAKE = """
mkdir -p "${1%/*}" && mkdir "$1.$2" && cat > "$1.$2/holder" && : > "$1.$2/heartbeat" \
  || { rm -rf "$1.$2"; exit 1; }
for attempt in 1 2 3; do
  said=$(mv -T "$1.$2" "$1" 2>&1) && exit 0
  [ ! -e "$1" ] || { rm -rf "$1.$2"; exit 75; }
done
rm -rf "$1.$2"
printf '%s\n' "$said" >&2
exit 1
"""


def take(path: str, holder: Holder) -> Command:
    record = json.dumps(asdict(holder)).encode()
    return script(_TAKE, path, holder.nonce, stdin=record, root=True).within(20)


def taken_by_another(result: Result) -> bool:
    return result.status == _TAKEN


_OURS = '[ "$(sed -n \'s/.*"nonce": "\\([0-9a-f]*\\)".*/\\1/p\' "$1/holder" 2>/dev/null)" = "$2" ]'


# Renamed before it is emptied: nobody sees a lock that has lost its record.
_RELEASE = f'''{_OURS} || exit 0; mv -T "$1" "$1.$2" && rm -rf "$1.$2"'''


def beat(path: str, nonce: str) -> Command:
    """Says that the holder is alive; fails when the lock is no longer its own."""
    return script(f'{_OURS} || exit 76; : > "$1/heartbeat"', path, nonce, root=True).within(20)


def lost(result: Result) -> bool:
    """Whether a beat found somebody else's lock, or none; a beat may also fail on its own."""
    return result.status == _LOST


def release(path: str, nonce: str) -> Command:
    """Gives the lock back; a lock that somebody else took meanwhile stays."""
    return script(_RELEASE, path, nonce, root=True).within(20)


def break_(path: str) -> Command:
    return Command(("rm", "-rf", "--", path), root=True)


_STATE = """
[ -e "$1" ] || { echo free; exit 0; }
now=$(date +%s)
age() { echo $((now - $(stat -c %Y "$1" 2>/dev/null || stat -c %Y "${1%/*}" || echo "$now"))); }
echo "held $(age "$1/holder") $(age "$1/heartbeat")"
cat "$1/holder"
"""


def _parse_state(result: Result) -> LockState:
    first, _, rest = result.stdout.partition("\n")
    words = first.split()
    if words[:1] != ["held"]:
        return LockState(held=False)
    age_s, silent_s = (whole(word) or 0 for word in (*words[1:], "0", "0")[:2])
    return LockState(
        held=True, holder=_holder(json_object(rest) or {}), age_s=age_s, silent_s=silent_s
    )


def _holder(shown: Mapping[str, Any]) -> Holder | None:
    texts = [shown.get(name) for name in ("who", "machine", "boot_id", "what", "nonce")]
    pid = shown.get("pid")
    if not all(isinstance(text, str) for text in texts) or type(pid) is not int:
        return None
    who, machine, boot_id, what, nonce = map(str, texts)
    return Holder(who=who, machine=machine, boot_id=boot_id, pid=pid, what=what, nonce=nonce)


def state(path: str) -> Fact[LockState]:
    return Fact(name="lock", command=script(_STATE, path, root=True).within(20), parse=_parse_state)
