"""An engine's log on a host: how it is read, and which host a line of it was written on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Command, script

# Several files are told apart by tail's own headings; a file that is not there is no failure:
# each host is asked for every engine of a service, and has those that it ran.
_READ = r"""
cd "$1" 2>/dev/null || exit 0
tail=$2 follow=$3
shift 3
for name do
  shift
  if [ -f "$name.log" ]; then set -- "$@" "$name.log"; fi
done
[ "$#" -gt 0 ] || exit 0
exec tail -v -n "$tail" $follow -- "$@"
"""
_HEADING = re.compile(r"==> (.+)\.log <==")
# `(RayWorkerProc pid=12, ip=10.0.0.2) ...`: Ray names the host of a line that came from elsewhere.
_RANK = re.compile(r"\([^()=]{1,200} pid=\d+, ip=([0-9a-fA-F.:]+)\)")


def read(folder: str, engines: Sequence[str], *, tail: int, follow: bool) -> Command:
    return script(_READ, folder, str(tail), "-F" if follow else "", *engines, root=True)


@dataclass(slots=True)
class Labelled:
    """Puts before each line of one host's logs where it was written, and by which engine if there
    are several. `hosts`: names by IP."""

    host: str
    engines: Sequence[str]
    hosts: Mapping[str, str]
    width: int
    engine: str = ""
    _blank: bool = False

    def lines(self, line: str) -> tuple[str, ...]:
        """What to show for this line: nothing for a heading and the blank line before it."""
        heading = _HEADING.fullmatch(line)
        if heading and heading[1] in self.engines:
            self.engine, self._blank = heading[1], False
            return ()
        held = (self._shown(""),) if self._blank else ()
        self._blank = not line
        return held if self._blank else (*held, self._shown(line))

    def _shown(self, line: str) -> str:
        rank = _RANK.search(line)
        host = self.hosts.get(rank[1], self.host) if rank else self.host
        engine = f" {self.engine}" if len(self.engines) > 1 else ""
        return f"{host.ljust(self.width)}{engine} | {line}".rstrip()
