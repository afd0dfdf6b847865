"""Conversations with sources: gone on with, let go, and over."""

from __future__ import annotations

import select
import threading
from dataclasses import dataclass, field

import pytest

from tests.rig.programs import until
from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.shell import Feed, Inbox, OnLine, Take
from vllmdeploy.effects.transfer_lanes import Lanes
from vllmdeploy.errors import HostUnreachable
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.ranges import Range

PLACE = ModelPlace("/models", "M")


def wanted(number: int) -> Range:
    return Range(place=PLACE, number=number, path="f", start=0, end=9)


@dataclass
class Host:
    """Answers every range at once, until a conversation is to end."""

    host: str = "h"
    begun: list[str] = field(default_factory=list[str])
    ended: list[str] = field(default_factory=list[str])
    failing: dict[str, Result | HostUnreachable] = field(
        default_factory=dict[str, "Result | HostUnreachable"]
    )
    go_on: threading.Event = field(default_factory=threading.Event)

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        raise AssertionError(f"unexpected: {command} {on_line}")

    def stream(
        self, command: Command, *, take: Take | None = None, feed: Feed | None = None
    ) -> Result:
        assert isinstance(feed, Inbox)
        assert take is not None
        source = command.argv[0]
        self.begun.append(source)
        while True:
            select.select([feed], [], [])
            while (line := feed()) is not None:
                if not line:
                    self.ended.append(source)
                    return Result(0)
                self.go_on.wait(10)
                trouble = self.failing.pop(source, None)
                if isinstance(trouble, HostUnreachable):
                    raise trouble
                if trouble is not None:
                    return trouble
                take(b"came 9\nwhole %s\n" % line.split()[0])

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def host() -> Host:
    made = Host()
    made.go_on.set()
    return made


def bring(lanes: Lanes, host: Host, source: str, number: int = 1) -> Result | None:
    return lanes.bring(host, source, lambda: Command((source,)), wanted(number), lambda _: None)


def test_the_next_range_of_a_source_comes_in_the_same_conversation(host: Host) -> None:
    lanes = Lanes()
    for number, source in enumerate(("a", "b", "a", "b", "a")):
        assert bring(lanes, host, source, number) is None
    assert host.begun == ["a", "b"]
    lanes.end()
    until("both ends", lambda: sorted(host.ended) == ["a", "b"], limit_s=10)


def test_who_has_waited_longest_is_let_go(host: Host) -> None:
    lanes = Lanes()
    for source in ("a", "b", "c", "d", "e", "a", "f"):
        assert bring(lanes, host, source) is None
    until("one end", lambda: host.ended == ["b"], limit_s=10)
    assert bring(lanes, host, "a") is None
    assert host.begun == ["a", "b", "c", "d", "e", "f"]


def test_a_conversation_that_failed_is_not_gone_on_with(host: Host) -> None:
    lanes = Lanes()
    assert bring(lanes, host, "a") is None
    host.failing["a"] = Result(1, stderr="refused")
    failed = bring(lanes, host, "a")
    assert failed is not None
    assert (failed.status, failed.stderr) == (1, "refused")
    host.failing["a"] = HostUnreachable("h", "gone")
    with pytest.raises(HostUnreachable):
        bring(lanes, host, "a")
    assert bring(lanes, host, "a") is None
    assert host.begun == ["a", "a", "a"]


@pytest.mark.parametrize("trouble", [None, Result(1)])
def test_what_is_on_its_way_at_the_end_still_ends(host: Host, trouble: Result | None) -> None:
    lanes = Lanes()
    host.go_on.clear()
    said: list[Result | None] = []
    if trouble is not None:
        host.failing["a"] = trouble
    asking = threading.Thread(target=lambda: said.append(bring(lanes, host, "a")))
    asking.start()
    until("it began", lambda: host.begun == ["a"], limit_s=10)
    lanes.end()
    host.go_on.set()
    asking.join(10)
    assert said == [trouble]
    if trouble is None:
        until("its end", lambda: host.ended == ["a"], limit_s=10)
