"""How far a download or a verification is: a bar on a terminal, a plain line now and then else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vllmdeploy.cli import output
from vllmdeploy.plan.models_files import size_text

if TYPE_CHECKING:
    from rich.live import Live

    from vllmdeploy.effects.hub import Progress
    from vllmdeploy.workflows.models import OnBytes

_PLAIN_EVERY_S = 10.0


def words(progress: Progress) -> str:
    """`1.2 GiB of 14.9 GiB (8 %), 110.3 MiB/s, 2:07 left, 3 of 12 files`."""
    total = progress.bytes_total
    share = int(100 * progress.bytes_done / total) if total else 100
    left = progress.seconds_left
    parts = [
        f"{size_text(progress.bytes_done)} of {size_text(total)} ({share} %)",
        f"{size_text(progress.bytes_per_s)}/s",
        *((f"{time_text(left)} left",) if left is not None else ()),
        *((f"{progress.files_done} of {progress.files_total} files",) if total else ()),
        *((progress.waiting,) if progress.waiting else ()),
    ]
    return ", ".join(parts)


def time_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def shown() -> Generator[Callable[[Progress], None]]:
    with line() as at:
        yield lambda progress: at.tell(words(progress))


@contextmanager
def hashing() -> Generator[OnBytes]:
    """Several hosts hash at once: each is told of in its own part of the line."""
    hosts: dict[str, str] = {}

    def text(host: str, done: int, total: int) -> str:
        hosts[host] = f"{host} {100 * done // total if total else 100} %"
        return "hashing: " + ", ".join(hosts.values())

    with line() as at:
        yield lambda host, done, total: at.tell(text(host, done, total))


class Line(Protocol):
    """Whatever is told last, on a terminal, and what is said stands above it; elsewhere a line of
    what is told now and then."""

    def tell(self, text: str) -> None: ...

    def say(self, text: str) -> None: ...


@contextmanager
def line() -> Generator[Line]:
    if sys.stderr.isatty():
        with _live() as live:
            yield live
    else:
        yield _Plain()


class _Plain:
    """Nothing in the first seconds: what is done by then needs no progress."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 2.0

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PLAIN_EVERY_S
            output.say(text)

    def say(self, text: str) -> None:
        output.say(text)


@contextmanager
def _live() -> Generator[Line]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield _Shown(live)


@dataclass
class _Shown:
    live: Live

    def tell(self, text: str) -> None:
        from rich.text import Text

        self.live.update(Text(output.clean(text)))

    def say(self, text: str) -> None:
        from rich.text import Text

        self.live.console.print(Text(output.clean(text)), soft_wrap=True)
