"""How far a download or a verification is: a bar on a terminal, a plain line now and then else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllmdeploy.cli import output
from vllmdeploy.plan.models_files import size_text

if TYPE_CHECKING:
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
    if sys.stderr.isatty():
        with _live() as update:
            yield lambda progress: update(words(progress))
    else:
        plain = _Plain()
        yield lambda progress: plain.tell(words(progress))


@contextmanager
def hashing() -> Generator[OnBytes]:
    """Several hosts hash at once: each is told of in its own part of the line."""
    hosts: dict[str, str] = {}

    def line(host: str, done: int, total: int) -> str:
        hosts[host] = f"{host} {100 * done // total if total else 100} %"
        return "hashing: " + ", ".join(hosts.values())

    if sys.stderr.isatty():
        with _live() as update:
            yield lambda host, done, total: update(line(host, done, total))
    else:
        plain = _Plain()
        yield lambda host, done, total: plain.tell(line(host, done, total))


@contextmanager
def line() -> Generator[Callable[[str], None]]:
    """Whatever text is told last, on a terminal; now and then a line of it elsewhere."""
    if sys.stderr.isatty():
        with _live() as update:
            yield update
    else:
        yield _Plain().tell


class _Plain:
    """Nothing in the first seconds: what is done by then needs no progress."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 2.0

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PLAIN_EVERY_S
            output.say(text)


@contextmanager
def _live() -> Generator[Callable[[str], None]]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield lambda text: live.update(Text(output.clean(text)))
