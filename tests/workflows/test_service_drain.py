"""A service that is stopped: the gateway sends nothing new, and what it works on is answered."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.plan.builders import wanted
from tests.plan.service_builders import group, service
from tests.support.fake_engine import MODEL, FakeEngine
from tests.support.running_gateway import gateway
from vllmdeploy.core.command import Command
from vllmdeploy.core.layout import Layout
from vllmdeploy.core.plan import Draft, Run
from vllmdeploy.effects.execute import Event, Finished, Outcome, Waiting, execute
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateway_node import GatewayWanted, fleet_file, fleet_folder
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.supervise import supervisor
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.vllm_services import Service

GATEWAY = GatewayWanted(listen="127.0.0.1", port=8000)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine("slow")


def served(engine: FakeEngine) -> Service:
    return replace(service("m", port=engine.port), names=(MODEL,))


def ground(root: Path, drain_s: int) -> Ground:
    """The head as a folder of this machine, its programs run by this interpreter."""
    what = wanted(runtime="process", python=sys.executable, drain_s=drain_s)
    head = group().head
    access = Access(Layout(str(root)), "root", 0, False, False)
    found = replace(head.found, access=access)
    return Ground(
        draft=Draft(),
        wanted=what,
        supervisor=supervisor(what),
        head=replace(head, found=found),
    )


def stopping(here: Ground, one: Service) -> None:
    """Withdrawn, drained, and then a mark in place of the engine's end."""
    offering = Offering(ground=here, gateway=GATEWAY, package=b"", fleet="there")
    drained = steps.drain(here, one, (offering.withdraw(one, ()),))
    here.add("end", one.name, "", Run(Command(("true",))), (drained,))


def prepared(here: Ground, one: Service) -> Path:
    folder = Path(fleet_folder(here.head.layout, "vllm-gateway"))
    folder.mkdir(parents=True)
    (folder / "fleet.json").write_bytes(fleet_file(GATEWAY, [one]))
    return folder / "fleet.json"


async def carried_out(here: Ground, on_event: Callable[[Event], None]) -> list[Outcome]:
    shells = {"gpu-01": LocalShell("gpu-01")}
    plan = here.draft.finished()
    outcomes = await asyncio.to_thread(execute, plan, shells, on_event)
    return [one.outcome for one in outcomes]


async def test_a_slow_request_is_answered_before_its_engine_is_ended(
    tmp_path: Path, engine: FakeEngine
) -> None:
    engine.counts = True
    one, here = served(engine), ground(tmp_path, drain_s=60)
    config = prepared(here, one)
    engine.hold()
    said: list[str] = []

    def follow(event: Event) -> None:
        if isinstance(event, Waiting):
            said.append(event.missing)
            engine.release()
        elif isinstance(event, Finished) and event.outcome.step.verb == "end":
            said.append(f"ended with {engine.busy} at work")

    async with gateway("--config", str(config)) as api:
        await api.until_ready(1)
        asked = asyncio.ensure_future(api.post("/generate", {"prompt": "a", "model": MODEL}))
        await asyncio.to_thread(engine.entered.acquire, timeout=20)
        stopping(here, one)
        outcomes = await carried_out(here, follow)
        slow: httpx.Response = await asked
        later = await api.post("/generate", {"prompt": "b", "model": MODEL})
    assert outcomes == [Outcome.DONE] * 3
    assert said == ["1 requests are at work", "ended with 0 at work"]
    assert slow.status_code == 200
    assert later.status_code != 200
    assert [asked["prompt"] for asked in engine.asked] == ["a"]


async def test_a_request_that_takes_longer_than_the_limit_holds_up_nothing(
    tmp_path: Path, engine: FakeEngine
) -> None:
    engine.counts = True
    one, here = served(engine), ground(tmp_path, drain_s=1)
    config = prepared(here, one)
    engine.hold()
    async with gateway("--config", str(config)) as api:
        await api.until_ready(1)
        asked = asyncio.ensure_future(api.post("/generate", {"prompt": "a", "model": MODEL}))
        await asyncio.to_thread(engine.entered.acquire, timeout=20)
        stopping(here, one)
        assert await carried_out(here, lambda event: None) == [Outcome.DONE] * 3
        engine.release()
        assert (await asked).status_code == 200


async def test_an_engine_that_does_not_answer_has_nothing_to_lose(tmp_path: Path) -> None:
    here = ground(tmp_path, drain_s=60)
    engine = FakeEngine("gone")
    one = served(engine)
    engine.close_port()
    prepared(here, one)
    stopping(here, one)
    assert await carried_out(here, lambda event: None) == [Outcome.DONE] * 3
