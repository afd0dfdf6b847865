"""The one seam to the world: something that runs a command on a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vllmdeploy.core.command import Command, Result

OnLine = Callable[[str], None]
Take = Callable[[bytes], None]
# More input for a command: None where there is none yet, nothing at the end.
Feed = Callable[[], bytes | None]


class Shell(Protocol):
    """One host. `run` never raises for a non-zero status; it raises HostError when there is no
    conversation. Output is decoded as UTF-8 with replacement. The time limit is the command's."""

    @property
    def host(self) -> str: ...

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result: ...

    def close(self) -> None: ...


class Streaming(Protocol):
    """A shell whose commands also take and give bytes of any length, which are never kept."""

    @property
    def host(self) -> str: ...

    def stream(
        self, command: Command, *, take: Take | None = None, feed: Feed | None = None
    ) -> Result: ...
