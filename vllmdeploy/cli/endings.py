"""A closed terminal and a service manager's SIGTERM end a command in the way of Ctrl-C."""

from __future__ import annotations

import os
import signal
import stat
import threading
from types import FrameType

_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """What would end this process without a word does what Ctrl-C does: locks are given back, a
    demo is taken down. What `nohup` has had ignored stays ignored, and a handler that somebody
    else has set is theirs."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _FROM_OUTSIDE:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    for once in _FROM_OUTSIDE:
        # A shell and make each send one of their own: the second does not cut the tidying short.
        if signal.getsignal(once) is _interrupt:
            signal.signal(once, _nothing)
    if number == signal.SIGHUP:
        _let_go_of_the_terminal()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's background job
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _nothing(_: int, __: FrameType | None) -> None:
    pass


def _let_go_of_the_terminal() -> None:
    """Every word to a terminal that is gone would fail, and with it what is being tidied up."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
