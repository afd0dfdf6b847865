from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.support.fake_engine import FakeEngine, engines
from vllmdeploy import ControlPlaneManager, ExecutionInstance, RequestMetadata
from vllmdeploy.client import errors
from vllmdeploy.client.control_plane import Completion
from vllmdeploy.errors import UsageError
from vllmdeploy.routing.thresholds import Thresholds

MODEL = "meta-llama/Llama-2-7b"


@pytest.fixture
def four() -> Iterator[list[FakeEngine]]:
    with engines(4) as fleet:
        yield fleet


async def until(claim: Callable[[], bool]) -> None:
    while not claim():  # noqa: ASYNC110  # it is other tasks' state, and nothing tells of it
        await asyncio.sleep(0.001)


def instance(engine: FakeEngine, model: str = MODEL, **fields: int) -> ExecutionInstance:
    return ExecutionInstance(
        instance_id=engine.name, host="127.0.0.1", port=engine.port, model_name=model, **fields
    )


def manager(four: list[FakeEngine], **options: str) -> ControlPlaneManager:
    plane = ControlPlaneManager(**options)  # type: ignore[arg-type]  # only names of policies
    for engine in four:
        plane.register_instance(instance(engine))
    return plane


async def test_the_seeds_first_example_works_as_written(four: list[FakeEngine]) -> None:
    async def setup_local_cluster() -> ControlPlaneManager:
        cp = ControlPlaneManager(scheduling_policy="adaptive")
        for gpu_id in range(4):
            instance = ExecutionInstance(
                instance_id=f"local-gpu-{gpu_id}",
                host="localhost",
                port=four[gpu_id].port,
                model_name="meta-llama/Llama-2-7b",
                tensor_parallel_size=1,
                gpu_count=1,
            )
            cp.register_instance(instance)
        await cp.start()
        return cp

    cp = await setup_local_cluster()
    assert [(one.id, one.state) for one in cp.status().instances] == [
        (f"local-gpu-{n}", "ready") for n in range(4)
    ]
    await cp.stop()


async def test_the_seeds_test_request_returns_its_answer(four: list[FakeEngine]) -> None:
    cp = ControlPlaneManager(
        scheduling_policy="cost_optimized",
        routing_strategy="load_balanced",
    )
    cp.register_instance(
        ExecutionInstance(
            instance_id="test-gpu",
            host="localhost",
            port=four[0].port,
            model_name="meta-llama/Llama-2-7b",
            gpu_count=1,
        )
    )
    await cp.start()
    request = RequestMetadata(
        request_id="test-001",
        prompt="Tell me about artificial intelligence",
        max_tokens=100,
    )
    completion = await cp.submit_request(request)
    await cp.stop()
    assert completion == Completion(
        "test-001",
        "Hello from e0",
        "length",
        {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        "test-gpu",
    )
    assert four[0].asked == [
        {
            "model": "meta-llama/Llama-2-7b",
            "prompt": "Tell me about artificial intelligence",
            "max_tokens": 100,
        }
    ]


async def test_a_request_can_be_streamed(four: list[FakeEngine]) -> None:
    async with manager(four[:1]) as plane:
        pieces = [piece async for piece in plane.stream_request(RequestMetadata("r", "Hi"))]
    assert [piece.text for piece in pieces] == ["Hel", "lo ", "e0", ""]
    assert pieces[-1].usage == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


async def test_load_is_spread_and_a_dead_instance_is_left(four: list[FakeEngine]) -> None:
    async with manager(four) as plane:
        requests = [plane.submit_request(RequestMetadata(str(n), "Hi")) for n in range(40)]
        answers = await asyncio.gather(*requests)
        assert sorted(len(engine.asked) for engine in four) == [10, 10, 10, 10]
        assert [answer.request_id for answer in answers] == [str(n) for n in range(40)]
        four[1].close_port()
        for n in range(20):
            await plane.submit_request(RequestMetadata(str(n), "Hi"))
        assert plane.status().ready == 3


async def test_an_instance_that_is_not_up_yet_is_down_and_not_fatal(four: list[FakeEngine]) -> None:
    four[0].close_port()
    async with manager(four[:2]) as plane:
        states = [(one.id, one.state, one.reason) for one in plane.status().instances]
        assert states == [("e0", "down", "connection refused"), ("e1", "ready", "")]
        answer = await plane.submit_request(RequestMetadata("r", "Hi"))
        assert answer.instance_id == "e1"


async def test_instances_come_and_go_while_it_runs(four: list[FakeEngine]) -> None:
    async with manager(four[:1]) as plane:
        plane.register_instance(instance(four[1]))
        plane.unregister_instance("e0")
        answer = await plane.submit_request(RequestMetadata("r", "Hi"))
        assert answer.instance_id == "e1"
        plane.register_instance(instance(four[2], model=MODEL))
        plane.drain_instance("e1")
        answer = await plane.submit_request(RequestMetadata("r", "Hi"))
        assert answer.instance_id == "e2"
        assert [one.state for one in plane.status().instances] == ["draining", "ready"]
        plane.resume_instance("e1")
        assert [one.state for one in plane.status().instances] == ["starting", "ready"]
        with pytest.raises(UsageError, match="no instance 'e9' is registered"):
            plane.drain_instance("e9")
        with pytest.raises(UsageError, match="no instance 'e9' is registered"):
            plane.unregister_instance("e9")


async def test_an_id_that_is_registered_again_is_replaced(four: list[FakeEngine]) -> None:
    async with manager(four[:1]) as plane:
        moved = ExecutionInstance("e0", "127.0.0.1", four[1].port, MODEL)
        plane.register_instance(moved)
        await plane.submit_request(RequestMetadata("r", "Hi"))
        assert (len(four[0].asked), len(four[1].asked)) == (0, 1)


async def test_models_are_kept_apart(four: list[FakeEngine]) -> None:
    plane = ControlPlaneManager()
    plane.register_instance(instance(four[0], "a"))
    plane.register_instance(instance(four[1], "b"))
    async with plane:
        for _ in range(4):
            answer = await plane.submit_request(RequestMetadata("r", "Hi", model="b"))
            assert answer.instance_id == "e1"
        with pytest.raises(ValueError, match="name a model: registered are a, b"):
            await plane.submit_request(RequestMetadata("r", "Hi"))
        with pytest.raises(ValueError, match="no model 'c': registered are a, b"):
            await plane.submit_request(RequestMetadata("r", "Hi", model="c"))


async def test_the_urgent_one_goes_first_when_all_are_busy(four: list[FakeEngine]) -> None:
    plane = ControlPlaneManager(scheduling_policy="priority")
    plane.register_instance(instance(four[0], max_concurrent=1))
    four[0].hold()
    async with plane:

        def submit(name: str, priority: int) -> asyncio.Task[Completion]:
            request = RequestMetadata(name, name, priority=priority)
            return asyncio.ensure_future(plane.submit_request(request))

        tasks = [submit("first", 0), submit("late", 5), submit("normal", 0), submit("urgent", -5)]
        await until(lambda: plane.status().waiting == 3)
        four[0].release()
        await asyncio.gather(*tasks)
    assert [asked["prompt"] for asked in four[0].asked] == ["first", "urgent", "normal", "late"]


async def test_a_deadline_ends_the_wait_in_the_queue_and_at_the_engine(
    four: list[FakeEngine],
) -> None:
    plane = ControlPlaneManager(scheduling_policy="slo_aware")
    plane.register_instance(instance(four[0], max_concurrent=1))
    four[0].hold()
    async with plane:
        with pytest.raises(errors.APITimeoutError, match="request r: not answered within 50 ms"):
            await plane.submit_request(RequestMetadata("r", "Hi", deadline_ms=50))
        assert plane.status().instances[0].inflight == 0
        blocked = asyncio.ensure_future(plane.submit_request(RequestMetadata("b", "Hi")))
        await until(lambda: plane.status().instances[0].inflight == 1)
        with pytest.raises(errors.APITimeoutError, match="request late: not answered within 0 ms"):
            await plane.submit_request(RequestMetadata("late", "Hi", deadline_ms=0))
        four[0].release()
        await blocked


async def test_who_waits_when_it_stops_is_told(four: list[FakeEngine]) -> None:
    plane = ControlPlaneManager()
    plane.register_instance(instance(four[0], max_concurrent=1))
    four[0].hold()
    await plane.start()
    tasks = [asyncio.ensure_future(plane.submit_request(RequestMetadata(n, n))) for n in "ab"]
    await until(lambda: plane.status().waiting == 1)
    await plane.stop()
    with pytest.raises(errors.APIConnectionError, match="the client was closed"):
        await tasks[1]
    four[0].release()
    assert (await tasks[0]).text == "Hello from e0", "what is in flight ends"


async def test_a_cancelled_caller_leaves_the_line_and_the_engine(four: list[FakeEngine]) -> None:
    plane = ControlPlaneManager()
    plane.register_instance(instance(four[0], max_concurrent=1))
    four[0].hold()
    async with plane:
        tasks = [asyncio.ensure_future(plane.submit_request(RequestMetadata(n, n))) for n in "abc"]
        await until(lambda: plane.status().waiting == 2)
        tasks[1].cancel()
        tasks[0].cancel()
        four[0].release()
        assert (await tasks[2]).request_id == "c"
        assert (plane.status().waiting, plane.status().instances[0].inflight) == (0, 0)


async def test_a_hung_engine_with_a_healthy_port_is_ejected_by_its_canary(
    four: list[FakeEngine],
) -> None:
    limits = Thresholds(
        check_interval_s=0.01, canary_interval_s=0.02, canary_timeout_s=0.05, ejection_s=1000.0
    )
    plane = ControlPlaneManager(routing_strategy="round_robin", thresholds=limits)
    for engine in four[:2]:
        plane.register_instance(instance(engine))
    four[0].hold()
    async with plane:
        hanging = asyncio.ensure_future(plane.submit_request(RequestMetadata("h", "Hi")))
        await until(lambda: plane.status().instances[0].state == "ejected")
        assert plane.status().instances[0].reason == "canary failed: no answer in time"
        for n in range(4):
            answer = await plane.submit_request(RequestMetadata(str(n), "Hi"))
            assert answer.instance_id == "e1"
        moved = await asyncio.wait_for(hanging, 60)
        assert (moved.request_id, moved.instance_id) == ("h", "e1")


async def test_it_must_be_started_first_and_once(four: list[FakeEngine]) -> None:
    plane = manager(four[:1])
    with pytest.raises(UsageError, match="the control plane does not run"):
        await plane.submit_request(RequestMetadata("r", "Hi"))
    await plane.start()
    with pytest.raises(UsageError, match="the control plane runs already"):
        await plane.start()
    await plane.stop()
    await plane.stop()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"instance_id": ""}, "an instance needs an instance_id and a model_name"),
        ({"model_name": ""}, "an instance needs an instance_id and a model_name"),
        ({"port": 99999}, "Port out of range"),
        ({"host": "a b"}, "no host in it"),
        ({"tensor_parallel_size": 4}, "tensor_parallel_size 4 is more than its 1 cards"),
    ],
)
def test_an_instance_that_cannot_be_is_refused(fields: dict[str, object], words: str) -> None:
    right = {"instance_id": "i", "host": "h", "port": 8000, "model_name": "m"}
    with pytest.raises(UsageError, match=words):
        ControlPlaneManager().register_instance(ExecutionInstance(**{**right, **fields}))  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("options", [{"scheduling_policy": "x"}, {"routing_strategy": "x"}])
def test_a_misspelt_policy_is_refused_when_it_is_made(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"unknown \w+ policy 'x'"):
        ControlPlaneManager(**options)  # type: ignore[arg-type]  # only names of policies


def test_the_cost_of_an_instance_is_its_cards_unless_it_is_said() -> None:
    big = ExecutionInstance("tp4-instance", "localhost", 9000, "m", 4, gpu_count=4)
    assert big.upstream().cost == 4.0
    assert ExecutionInstance("x", "::1", 9000, "m", cost=0.5).upstream().cost == 0.5
    assert str(ExecutionInstance("x", "::1", 9000, "m").upstream().address) == "http://[::1]:9000"
