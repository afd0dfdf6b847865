"""Which hosts see the same folder: each leaves a file with a name nobody else has, and looks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact

_NONCE = re.compile(r"[0-9a-f]{32}")

# $1 MODEL_PATH, $2 the nonce. What a dead run left is too old to be one of ours.
_LEAVE = """
umask 022
mkdir -p "$1/.incoming" && : > "$1/.incoming/.seen-$2" || exit 1
find "$1/.incoming" -maxdepth 1 -name '.seen-*' -mmin +60 -exec rm -f {} +
exit 0
"""
_SEE = """
[ -d "$1/.incoming" ] || exit 0
find "$1/.incoming" -maxdepth 1 -name '.seen-*'
"""


def leave(root: str, nonce: str) -> Command:
    """Fails where the folder cannot be written, which is allowed: others may write it."""
    return script(_LEAVE, root, nonce, root=True).within(60)


def take_away(root: str, nonce: str) -> Command:
    return Command(("rm", "-f", "--", f"{root}/.incoming/.seen-{nonce}"), root=True)


def _parse_seen(result: Result) -> frozenset[str]:
    names = (line.rpartition("/.seen-")[2] for line in result.stdout.splitlines())
    return frozenset(name for name in names if _NONCE.fullmatch(name))


def seen(root: str) -> Fact[frozenset[str]]:
    return Fact(
        name=f"nonces in {root}",
        command=script(_SEE, root, root=True).within(60),
        parse=_parse_seen,
    )


def shared(left: Mapping[str, str], seen_by: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """For every host the one that writes where it reads: itself, unless its folder is another's.

    `left` is the nonce of every host that could write one; the first in it writes for the others.
    """
    writer: dict[str, str] = {}
    for name, nonces in seen_by.items():
        writer[name] = next((host for host, nonce in left.items() if nonce in nonces), name)
    return writer
