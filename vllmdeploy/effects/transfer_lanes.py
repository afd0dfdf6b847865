"""Conversations of one host with its sources, each of which brings range after range."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.shell import Inbox, OnLine
from vllmdeploy.effects.streams import Lines
from vllmdeploy.effects.transfer_freight import HostShell
from vllmdeploy.tools import ranges
from vllmdeploy.tools.ranges import Range

# A connection has room for eight sessions (`effects.ssh`), and other work on the host needs some.
_MOST_OPEN = 5


class Lane:
    """One source's ranges to one host, one after another."""

    def __init__(self, shell: HostShell, command: Command, source: str) -> None:
        self.source = source
        self.over = False
        self._inbox = Inbox()
        self._news: queue.SimpleQueue[str | Result | BaseException] = queue.SimpleQueue()
        work = threading.Thread(
            target=self._converse, args=(shell, command), daemon=True, name=f"lane from {source}"
        )
        work.start()

    def bring(self, wanted: Range, on_line: OnLine) -> Result | None:
        """None when it has come; else how the conversation ended."""
        self._inbox.put(ranges.asked(wanted))
        while True:
            said = self._news.get()
            if isinstance(said, str):
                if ranges.whole(said) == wanted.number:
                    return None
                on_line(said)
                continue
            if isinstance(said, BaseException):
                raise said
            return said

    def end(self) -> None:
        """Nothing more is asked; what is on its way ends by itself."""
        self._inbox.put(b"")

    def _converse(self, shell: HostShell, command: Command) -> None:
        lines = Lines(self._news.put)
        try:
            said = shell.stream(command, take=lines.feed, feed=self._inbox)
        except BaseException as error:
            self.over = True
            self._news.put(error)
        else:
            self.over = True
            self._news.put(said)


@dataclass(slots=True)
class Lanes:
    """Those of all hosts of one distribution. A lane that has brought its range waits for the next
    one from the same source; others are ended where a host has too many."""

    _idle: dict[str, list[Lane]] = field(default_factory=dict[str, list[Lane]])
    _busy: dict[str, int] = field(default_factory=dict[str, int])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: bool = False

    def bring(
        self,
        target: HostShell,
        source: str,
        begin: Callable[[], Command],
        wanted: Range,
        on_line: OnLine,
    ) -> Result | None:
        """As `Lane.bring`; `begin`: how a conversation with this source is begun."""
        lane = self._taken(target.host, source) or Lane(target, begin(), source)
        try:
            return lane.bring(wanted, on_line)
        finally:
            self._given_back(target.host, lane)

    def end(self) -> None:
        """Whatever is idle ends now, all others with their range."""
        with self._lock:
            self._over = True
            idle = [lane for lanes in self._idle.values() for lane in lanes]
            self._idle.clear()
        for lane in idle:
            lane.end()

    def _taken(self, target: str, source: str) -> Lane | None:
        with self._lock:
            idle = self._idle.setdefault(target, [])
            self._busy[target] = self._busy.get(target, 0) + 1
            idle[:] = (lane for lane in idle if not lane.over)
            found = next((lane for lane in idle if lane.source == source), None)
            if found is not None:
                idle.remove(found)
            ended = self._too_many(target)
        for lane in ended:
            lane.end()
        return found

    def _given_back(self, target: str, lane: Lane) -> None:
        with self._lock:
            self._busy[target] -= 1
            if not lane.over:
                self._idle.setdefault(target, []).append(lane)
            ended = self._too_many(target)
        for one in ended:
            one.end()

    def _too_many(self, target: str) -> list[Lane]:
        """The ones that have been idle for longest."""
        idle = self._idle.get(target, [])
        count = len(idle) if self._over else max(0, len(idle) + self._busy[target] - _MOST_OPEN)
        ended, self._idle[target] = idle[:count], idle[count:]
        return ended
