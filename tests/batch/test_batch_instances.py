"""Waiting for an instance: nobody waits for one that is up."""

from __future__ import annotations

import asyncio
import random

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
