"""A coroutine without a task: begun at once, gone on with at once, a task where it must be one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vllmdeploy.wire.work import Signal, Work, in_a_task, waiter

ALIVE_S = 60.0


class Bench:
    """Runs works as the event loop would, from a callback and not from the test's own task."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.errors: list[str] = []

    def work(self, coroutine: Coroutine[Any, None, None]) -> Work:
        return Work(coroutine, self.loop, lambda error: self.errors.append(repr(error)))

    async def call(self, callback: Callable[[], None]) -> None:
        done = self.loop.create_future()

        def both() -> None:
            callback()
            done.set_result(None)

        self.loop.call_soon(both)
        await asyncio.wait_for(done, ALIVE_S)


async def test_it_begins_and_goes_on_in_the_turn_that_brought_the_news() -> None:
    bench, signal, said = Bench(), Signal(), list[str]()

    async def wait() -> None:
        said.append("begun")
        await signal
        said.append(f"went on, in a task: {asyncio.current_task() is not None}")

    work = bench.work(wait())

    def one_turn() -> None:
        work.go_on()
        said.append("given")
        signal.set_result(None)
        said.append("turn over")

    await bench.call(one_turn)
    assert said == ["begun", "given", "went on, in a task: False", "turn over"]


async def test_a_signal_given_before_it_is_awaited_holds_nobody_up() -> None:
    bench, signal, said = Bench(), Signal(), list[str]()
    signal.set_result(None)

    async def wait() -> None:
        await signal
        said.append("over")

    await bench.call(bench.work(wait()).go_on)
    assert said == ["over"]
    assert signal.done()


async def test_where_it_waits_for_asyncio_it_becomes_a_task_and_stays_one() -> None:
    bench, over = Bench(), asyncio.Event()
    tasks: list[bool] = []

    async def wait() -> None:
        tasks.append(asyncio.current_task() is not None)
        await in_a_task()
        tasks.append(asyncio.current_task() is not None)
        await asyncio.wait_for(asyncio.sleep(0), ALIVE_S)
        own = waiter(bench.loop)
        bench.loop.call_soon(own.set_result, None)
        await own
        tasks.append(isinstance(own, asyncio.Future))
        over.set()

    await bench.call(bench.work(wait()).go_on)
    await asyncio.wait_for(over.wait(), ALIVE_S)
    assert tasks == [False, True, True]
    assert bench.errors == []


async def test_an_error_of_what_it_waits_for_reaches_it_as_a_task_too() -> None:
    bench, over, said = Bench(), asyncio.Event(), list[str]()
    failing = bench.loop.create_future()

    async def wait() -> None:
        try:
            await failing
        except ValueError as error:
            said.append(str(error))
        await asyncio.sleep(0)
        over.set()

    await bench.call(bench.work(wait()).go_on)
    failing.set_exception(ValueError("no"))
    await asyncio.wait_for(over.wait(), ALIVE_S)
    assert said == ["no"]


@pytest.mark.parametrize("as_task", [False, True])
async def test_cancelled_it_hears_of_it_where_it_waits(*, as_task: bool) -> None:
    bench, over, said = Bench(), asyncio.Event(), list[str]()
    signal = Signal()

    async def wait() -> None:
        try:
            await (asyncio.sleep(ALIVE_S) if as_task else signal)
        except asyncio.CancelledError:
            said.append("cancelled")
            raise
        finally:
            over.set()

    work = bench.work(wait())
    await bench.call(work.go_on)
    await bench.call(work.cancel)
    await asyncio.wait_for(over.wait(), ALIVE_S)
    await bench.call(work.cancel)
    await bench.call(lambda: signal.set_result(None))
    assert said == ["cancelled"]
    assert bench.errors == []


async def test_cancelled_it_may_wait_once_more_to_clean_up() -> None:
    bench, signal, last, said = Bench(), Signal(), Signal(), list[str]()

    async def wait() -> None:
        try:
            await signal
        finally:
            await last
            said.append("clean")

    work = bench.work(wait())
    await bench.call(work.go_on)
    await bench.call(work.cancel)
    assert said == []
    await bench.call(lambda: last.set_result(None))
    assert said == ["clean"]


async def test_its_own_errors_are_told_however_it_ran() -> None:
    bench, signal = Bench(), Signal()

    async def at_once() -> None:
        raise ValueError("at once")

    async def after_news() -> None:
        await signal
        raise ValueError("after news")

    async def when_cancelled() -> None:
        try:
            await Signal()
        finally:
            raise ValueError("when cancelled")

    async def as_a_task() -> None:
        await in_a_task()
        raise ValueError("as a task")

    await bench.call(bench.work(at_once()).go_on)
    await bench.call(bench.work(after_news()).go_on)
    await bench.call(lambda: signal.set_result(None))
    cancelled = bench.work(when_cancelled())
    await bench.call(cancelled.go_on)
    await bench.call(cancelled.cancel)
    await bench.call(bench.work(as_a_task()).go_on)

    async def all_told() -> None:
        while len(bench.errors) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)

    await asyncio.wait_for(all_told(), ALIVE_S)
    assert bench.errors == [
        "ValueError('at once')",
        "ValueError('after news')",
        "ValueError('when cancelled')",
        "ValueError('as a task')",
    ]
