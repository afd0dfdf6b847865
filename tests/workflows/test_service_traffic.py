from __future__ import annotations

import json
from dataclasses import replace

from vllmdeploy.core.command import Result
from vllmdeploy.workflows.service_traffic import Traffic, one_per_service, read
from vllmdeploy.workflows.status import ServiceStatus


def page(requests: int, tokens: int, *states: str) -> str:
    prefix = "vllmdeploy_gateway_"
    lines = [
        f'{prefix}requests_total{{route="/generate",model="m",status="2xx"}} {requests - 1}',
        f'{prefix}requests_total{{route="/generate",model="m",status="5xx"}} 1',
        f'{prefix}requests_total{{route="/generate",model="n",status="2xx"}} 99',
        f'{prefix}completion_tokens_total{{model="m"}} {tokens}',
    ]
    for number, state in enumerate(states, 1):
        label = 'instance="m"' if number == 1 else f'instance="m.{number}"'
        lines.append(f'{prefix}instance_state{{{label},state="{state}"}} 1')
        lines.append(f"{prefix}instance_ready{{{label}}} {int(state == 'ready')}")
    return "\n".join(lines) + "\n"


def seen(*states: str) -> Traffic:
    said = json.dumps([page(10, 100, *states), page(14, 340, *states), 2.0])
    return read(Result(0, said))


def engine(name: str, state: str = "ready", why: str = "", **more: int) -> ServiceStatus:
    return ServiceStatus(service=name, model="m", group="default", state=state, why=why, **more)  # type: ignore[arg-type]  # counts only


def test_a_service_is_ready_when_all_its_engines_are_and_shows_what_passes() -> None:
    engines = [
        ("m", engine("m", running=2, waiting=0)),
        ("m", engine("m.2", running=1, waiting=4, restarts=3)),
    ]
    (one,) = one_per_service(engines, seen("ready", "ready"))
    assert (one.state, one.why, one.ready, one.replicas) == ("ready", "", 2, 2)
    assert (one.requests_per_s, one.tokens_per_s) == (2.0, 120.0)
    assert (one.running, one.waiting, one.restarts) == (3, 4, 3)
    assert one.engines == {"m": "ready", "m.2": "ready"}


def test_it_is_degraded_by_each_engine_that_is_not_and_says_which_and_why() -> None:
    engines = [
        ("m", engine("m")),
        ("m", engine("m.2", "backing-off", "exited with code 1")),
        ("m", engine("m.3")),
    ]
    (one,) = one_per_service(engines, seen("ready", "down", "ejected"))
    assert (one.state, one.ready, one.replicas) == ("degraded", 1, 3)
    assert one.why == (
        "m.2: backing-off (exited with code 1); m.3: ejected (the gateway finds it ejected)"
    )


def test_one_engine_alone_is_the_service_and_says_its_own_reason() -> None:
    (one,) = one_per_service([("m", engine("m", "starting", "loading"))], Traffic())
    assert (one.state, one.why, one.ready) == ("starting", "loading", 0)
    assert (one.requests_per_s, one.tokens_per_s) == (None, None)
    (only,) = one_per_service([("m", engine("m.2", "starting"))], Traffic())
    assert (only.service, only.why) == ("m", "m.2: starting")


def test_cards_of_all_its_engines_are_counted_by_host() -> None:
    first = replace(engine("m"), placement={"gpu-01": 2, "gpu-02": 1})
    second = replace(engine("m.2"), placement={"gpu-02": 3})
    (one,) = one_per_service([("m", first), ("m", second)], Traffic())
    assert one.placement == {"gpu-01": 2, "gpu-02": 4}


def test_a_gateway_that_says_something_else_says_nothing() -> None:
    assert read(Result(1, "", "refused")) == Traffic()
    assert read(Result(0, '["x", "y", 1.0]')) == Traffic()
