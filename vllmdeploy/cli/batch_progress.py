"""How far a batch is: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllmdeploy.batch.progress import Progress, duration, words
from vllmdeploy.batch.runner import Listener
from vllmdeploy.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

_PLAIN_EVERY_S = 10.0
_INSTANCES_SHOWN = 16


@contextmanager
def shown() -> Generator[Listener]:
    if sys.stderr.isatty():
        with _live() as listener:
            yield listener
    else:
        yield PlainLines().report


class PlainLines:
    """The first report, then one every ten seconds, and the one that all rows are done."""

    def __init__(self) -> None:
        self._next = 0.0

    def report(self, progress: Progress) -> None:
        if progress.seconds >= self._next or progress.done == progress.total:
            self._next = progress.seconds + _PLAIN_EVERY_S
            output.say(words(progress))


@contextmanager
def _live() -> Generator[Listener]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), refresh_per_second=4) as live:
        yield lambda progress: live.update(bar(progress))


def bar(progress: Progress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    share = 100 * progress.done / progress.total if progress.total else 100.0
    left = progress.seconds_left
    top = Table.grid(padding=(0, 1), expand=True)
    top.add_column(ratio=1)
    top.add_column(justify="right")
    top.add_row(
        ProgressBar(total=max(1, progress.total), completed=progress.done),
        f"{share:.1f}%  {progress.done}/{progress.total}  "
        f"{duration(progress.seconds)} gone  "
        f"{duration(left) if left is not None else '-:--:--'} left",
    )
    counts = Text.assemble(
        (f"ok {progress.ok}", "green"),
        "  ",
        (f"failed {progress.failed}", "red" if progress.failed else "dim"),
        f"  in flight {progress.inflight}  {progress.rows_per_s:.1f} rows/s  "
        f"{progress.tokens_per_s:.0f} tokens/s",
    )
    lines: list[RenderableType] = [top, counts, *_instance_lines(progress)]
    if progress.waiting:
        lines.append(Text(output.clean(f"waiting: {progress.waiting}"), style="yellow"))
    return Group(*lines)


def _instance_lines(progress: Progress) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = []
    for instance in progress.instances[:_INSTANCES_SHOWN]:
        text = (
            f"  {instance.name}  {instance.inflight}/{instance.limit} in flight  "
            f"ok {instance.ok}  failed {instance.failed}  {instance.reason}"
        )
        lines.append(Text(output.clean(text).rstrip(), style="dim", overflow="ellipsis"))
    hidden = len(progress.instances) - _INSTANCES_SHOWN
    return lines if hidden <= 0 else [*lines, Text(f"  and {hidden} more", style="dim")]
