"""The one timer of all connections."""

from __future__ import annotations

import asyncio

from vllmdeploy.wire.deadlines import NEVER, Deadlines

ALIVE_S = 60.0


class Item:
    def __init__(self, fault: Exception | None = None) -> None:
        self.deadline = 0.0
        self.expired = asyncio.Event()
        self._fault = fault

    def expire(self) -> None:
        self.deadline = NEVER
        self.expired.set()
        if self._fault is not None:
            raise self._fault


async def test_a_bug_in_one_that_expires_keeps_no_other_from_it() -> None:
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    deadlines, bug = Deadlines(loop, tick_s=0), ValueError("a bug")
    broken = [Item(bug) for _ in range(3)]
    for one in broken:
        deadlines.add(one)
    for one in broken:
        await asyncio.wait_for(one.expired.wait(), ALIVE_S)
    later = Item()
    deadlines.add(later)
    await asyncio.wait_for(later.expired.wait(), ALIVE_S)
    assert told == [bug] * len(broken)
    for one in (*broken, later):
        deadlines.discard(one)
