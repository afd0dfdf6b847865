"""Waiting for a free instance, and leaving the line at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import cast

import pytest

from vllmdeploy.client.calls import Call, call_of
from vllmdeploy.client.instance import Instance
from vllmdeploy.client.lines import Lines
from vllmdeploy.routing.scheduling import scheduling
from vllmdeploy.routing.thresholds import Thresholds

FREE = cast("Instance", "the only instance")
CALL = call_of("/v1/completions", {"prompt": "x"})


class Place:
    """One place at one instance, as those in the line see it."""

    def __init__(self) -> None:
        self.free = False
        self.given_back = 0

    def choose(self, call: Call, tried: Collection[str]) -> Instance | None:
        taken, self.free = self.free, False
        return FREE if taken else None

    def give_back(self, instance: Instance) -> None:
        self.given_back += 1
        self.free = True


async def waiting(lines: Lines, place: Place, count: int) -> list[asyncio.Task[Instance]]:
    tasks = [asyncio.ensure_future(lines.wait(CALL, (), place.give_back)) for _ in range(count)]
    await asyncio.sleep(0)
    assert len(lines) == count
    return tasks


async def test_who_was_cancelled_but_has_not_left_yet_holds_up_nobody() -> None:
    place = Place()
    lines = Lines(scheduling("fifo"), Thresholds(), place.choose)
    first, second = await waiting(lines, place, 2)
    first.cancel()
    place.free = True
    lines.serve()
    assert await second is FREE
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (len(lines), place.given_back) == (0, 0)


async def test_who_is_cancelled_with_an_instance_in_hand_gives_it_back() -> None:
    place = Place()
    lines = Lines(scheduling("fifo"), Thresholds(), place.choose)
    (only,) = await waiting(lines, place, 1)
    place.free = True
    lines.serve()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert (place.free, place.given_back) == (True, 1)


async def test_who_is_cancelled_while_being_refused_is_cancelled() -> None:
    place = Place()
    lines = Lines(scheduling("fifo"), Thresholds(), place.choose)
    (only,) = await waiting(lines, place, 1)
    lines.close()
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert place.given_back == 0
