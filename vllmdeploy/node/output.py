"""Reads a child's output line by line, from the event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable

from vllmdeploy.node.logs import Lines


def follow(started: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> Callable[[], None]:
    """Until every process that holds the pipe has closed it. What it returns reads the rest now."""
    pipe = started.stdout
    if pipe is None:
        raise ValueError("started without a pipe")
    os.set_blocking(pipe.fileno(), False)
    loop = asyncio.get_running_loop()
    lines = Lines()

    def read() -> bool:
        try:
            data = os.read(pipe.fileno(), 65_536)
        except BlockingIOError:
            return False
        for line in lines.feed(data) if data else lines.rest():
            on_line(line)
        if not data:
            loop.remove_reader(pipe.fileno())
            pipe.close()
        return bool(data)

    def drain() -> None:
        while not pipe.closed and read():
            pass

    loop.add_reader(pipe.fileno(), read)
    return drain
