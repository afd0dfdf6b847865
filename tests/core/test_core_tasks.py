"""Tasks that end together, on every Python that is supported."""

from __future__ import annotations

import asyncio

import pytest

from vllmdeploy.core.tasks import TaskGroup


async def fails(message: str) -> None:
    raise ValueError(message)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_it_leaves_when_all_have_ended() -> None:
    gate = asyncio.Event()

    async def second() -> int:
        await gate.wait()
        return 2

    async with TaskGroup() as group:
        waiting = group.create_task(second())
        gate.set()
    assert waiting.result() == 2


async def test_the_first_failure_cancels_the_others_and_is_raised() -> None:
    others: list[asyncio.Task[None]] = []

    async def body() -> None:
        async with TaskGroup() as group:
            others.append(group.create_task(forever()))
            group.create_task(fails("first"))

    with pytest.raises(ValueError, match="first"):
        await body()
    assert others[0].cancelled()


async def test_a_failure_ends_a_body_that_waits() -> None:
    async def body() -> None:
        async with TaskGroup() as group:
            group.create_task(fails("early"))
            await forever()

    with pytest.raises(ValueError, match="early"):
        await body()


async def test_an_error_of_the_body_cancels_the_tasks_and_stays_itself() -> None:
    others: list[asyncio.Task[None]] = []

    async def body() -> None:
        async with TaskGroup() as group:
            others.append(group.create_task(forever()))
            await asyncio.sleep(0)
            raise KeyError("body")

    with pytest.raises(KeyError):
        await body()
    assert others[0].cancelled()


async def test_cancelling_the_owner_cancels_the_tasks() -> None:
    inside = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def owner() -> None:
        async with TaskGroup() as group:
            tasks.append(group.create_task(forever()))
            inside.set()

    running = asyncio.create_task(owner())
    await inside.wait()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tasks[0].cancelled()


async def test_what_is_begun_while_it_ends_is_cancelled_too() -> None:
    late: list[asyncio.Task[None]] = []

    async def begins_another(group: TaskGroup) -> None:
        try:
            await forever()
        finally:
            late.append(group.create_task(forever()))

    async def body() -> None:
        async with TaskGroup() as group:
            group.create_task(begins_another(group))
            await asyncio.sleep(0)
            group.create_task(fails("now"))

    with pytest.raises(ValueError, match="now"):
        await body()
    assert late[0].cancelled()


async def test_the_task_that_was_woken_by_a_failure_counts_no_cancellation_afterwards() -> None:
    async def body() -> None:
        async with TaskGroup() as group:
            group.create_task(fails("x"))
            await forever()

    with pytest.raises(ValueError, match="x"):
        await body()
    task = asyncio.current_task()
    assert task is not None
    cancelling = getattr(task, "cancelling", lambda: 0)  # from Python 3.11 on
    assert cancelling() == 0
