"""Waiting for an instance: nobody waits for one that is up."""

from __future__ import annotations

import asyncio
import random

import pytest

from vllmdeploy.batch.instances import Instances
from vllmdeploy.routing.policies.registry import create
from vllmdeploy.routing.upstream import Address, Upstream


class Jumping(asyncio.SelectorEventLoop):
    """A loop whose clock goes on by the next of `jumps` whenever it is looked at."""

    def __init__(self) -> None:
        self.jumps: list[float] = []
        self._ahead = 0.0
        super().__init__()

    def time(self) -> float:
        if self.jumps:
            self._ahead += self.jumps.pop()
        return super().time() + self._ahead


def test_an_instance_that_comes_up_between_two_looks_at_the_clock_is_taken() -> None:
    loop = Jumping()

    async def take() -> str:
        upstream = Upstream("one", Address("127.0.0.1", 1))
        instances = Instances([upstream], create("round_robin"), cap=1, chance=random.Random(1))
        (only,) = instances.all
        only.taken()
        only.lost(loop.time(), "connection refused", random.Random(1))
        only.down_until = loop.time() + 50
        loop.jumps = [100.0, 0.0]
        return (await instances.acquire()).name

    try:
        assert loop.run_until_complete(asyncio.wait_for(take(), 105)) == "one"
    finally:
        loop.close()


def test_an_outage_that_says_503_does_not_shrink_what_comes_after_it() -> None:
    """A gateway whose engine starts anew refuses one row every few seconds, for minutes."""

    async def places_after(probes: int) -> int:
        instances = Instances(
            [Upstream("one", Address("127.0.0.1", 1))],
            create("round_robin"),
            cap=64,
            chance=random.Random(1),
        )
        (only,) = instances.all
        now = 0.0
        for _ in range(probes):
            now += 60
            assert only.room(now) > 0
            only.taken()
            only.refused(now, "HTTP 503", random.Random(1), None)
        assert only.room(now + 60) == 1
        only.taken()
        only.answered(now + 60, 1.0, 1)
        return only.room(now + 60)

    assert asyncio.run(places_after(1)) == asyncio.run(places_after(20)) == 16


def test_on_uvloop_many_may_wait_for_what_comes_up_within_the_same_millisecond() -> None:
    loop = pytest.importorskip("uvloop").new_event_loop()

    async def take_two() -> list[str]:
        upstream = Upstream("one", Address("127.0.0.1", 1))
        instances = Instances([upstream], create("round_robin"), cap=2, chance=random.Random(1))
        (only,) = instances.all
        only.taken()
        only.lost(loop.time(), "connection refused", random.Random(1))
        only.down_until = loop.time() + 0.0004
        first, second = (asyncio.ensure_future(instances.acquire()) for _ in range(2))
        await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
        only.answered(loop.time(), 0.1, 1)
        instances.wake()
        return [(await task).name for task in (first, second)]

    try:
        assert loop.run_until_complete(asyncio.wait_for(take_two(), 60)) == ["one", "one"]
    finally:
        loop.close()
