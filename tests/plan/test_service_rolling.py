"""Replicas, and engines that take each other's place: plans as text, and what their waits read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.plan.builders import lines, wanted
from tests.plan.service_builders import ASKED, VLLM, group, running, service, stored, used
from vllmdeploy.core.command import Result
from vllmdeploy.core.plan import Draft, Plan, Wait
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.gateway.fleet_file import parse
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateway_node import GatewayWanted
from vllmdeploy.plan.service_gateways import Gateways
from vllmdeploy.plan.service_replicas import decide_replicas, engines_of, free_replica
from vllmdeploy.plan.service_rolling import (
    Rolling,
    Turn,
    Version,
    downtime,
    order,
    way_back,
)
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.plan.supervise import supervisor
from vllmdeploy.tools.vllm_engine import EngineState
from vllmdeploy.tools.vllm_services import Service

GATEWAY = GatewayWanted(listen="0.0.0.0", port=8000)
ANYWHERE = replace(VLLM, drives_anywhere=True)


def engine(replica: int = 1, generation: int = 1) -> Service:
    name = "m" if replica == 1 else f"m.{replica}"
    one = service(name, cards=1, port=8100 + replica)
    return replace(
        one,
        names=("m",),
        replica_of="" if replica == 1 else "m",
        generation=generation,
        asked={**one.asked, "replica": replica},
    )


def name_of(one: Service) -> bytes:
    return one.name.encode()


def version(replica: int = 1, generation: int = 1) -> Version:
    one = engine(replica, generation)
    return Version(service=one, content=b'{"name": "%b", "now": %d}' % (name_of(one), generation))


def rolling(serving: Mapping[str, Service], *, gateway: bool = True) -> Rolling:
    what = wanted()
    ground = Ground(draft=Draft(), wanted=what, supervisor=supervisor(what), head=group().head)
    offering = Offering(ground=ground, gateway=GATEWAY, package=b"zip")
    return Rolling(
        ground=ground,
        gateways=Gateways(of=(offering,)),
        serving=dict(serving),
        answering=(offering,) if gateway else (),
    )


TWO = {"m": engine(1), "m.2": engine(2), "other": service("other")}
TURNS = (
    Turn(before=version(1), after=version(1, 2)),
    Turn(before=version(2), after=version(2, 2)),
)


def planned(*turns: Turn, gateway: bool = True) -> Plan:
    writing = rolling(TWO, gateway=gateway)
    needs: tuple[str, ...] = ()
    for one in turns:
        needs = writing.turn(one, "restart-service", needs)
    return writing.ground.draft.finished()


def routed(plan: Plan) -> list[dict[str, tuple[int, bool]]]:
    """What each gateway file of a plan says: generation and draining by engine."""
    files = [step.command.stdin for step in plan if "vllm-gateway" in step.subject]
    return [
        {one.id: (one.generation, one.drain) for one in parse(content.decode(), "x").upstreams}
        for content in files
        if content
    ]


def test_engines_take_turns_each_drained_before_it_goes_and_used_before_the_next_does() -> None:
    plan = planned(*TURNS)
    assert lines(plan) == (
        "gpu-01: drain m in vllm-gateway (it gets no new requests)\n"
        "gpu-01: await last answer of m (no request is cut off)\n"
        "gpu-01: write service m (restart-service)\n"
        "gpu-01: await service m (its engine loads and answers a canary)\n"
        "gpu-01: write vllm-gateway's instances: m (restart-service)\n"
        "gpu-01: await m in vllm-gateway (it is sent requests before the next one goes)\n"
        "gpu-01: drain m.2 in vllm-gateway (it gets no new requests)\n"
        "gpu-01: await last answer of m.2 (no request is cut off)\n"
        "gpu-01: write service m.2 (restart-service)\n"
        "gpu-01: await service m.2 (its engine loads and answers a canary)\n"
        "gpu-01: write vllm-gateway's instances: m.2 (restart-service)\n"
        "gpu-01: await m.2 in vllm-gateway (it is sent requests before the next one goes)"
    )
    before, *steps = plan.steps
    for step in steps:
        assert step.needs == (before.key,)
        before = step
    others = {"other": (1, False)}
    assert routed(plan) == [
        {"m": (1, True), "m.2": (1, False), **others},
        {"m": (2, False), "m.2": (1, False), **others},
        {"m": (2, False), "m.2": (1, True), **others},
        {"m": (2, False), "m.2": (2, False), **others},
    ]


def test_one_that_only_goes_is_drained_and_removed_and_one_that_only_comes_is_not() -> None:
    plan = planned(Turn(before=None, after=version(3)), Turn(before=version(1), after=None))
    assert [f"{step.verb} {step.subject}" for step in plan] == [
        "write service m.3",
        "await service m.3",
        "write vllm-gateway's instances: m.3",
        "await m.3 in vllm-gateway",
        "drain m in vllm-gateway",
        "await last answer of m",
        "remove service m",
        "await end of m",
        "write vllm-gateway's instances: end of m",
    ]
    assert set(routed(plan)[-1]) == {"m.2", "m.3", "other"}


def test_without_a_gateway_nobody_is_asked_to_drain() -> None:
    assert [step.verb for step in planned(TURNS[0], gateway=False)] == ["write", "await", "write"]


def missing(plan: Plan, subject: str, page: str) -> str | None:
    action = next(step.action for step in plan if step.subject == subject)
    assert isinstance(action, Wait)
    return action.missing(Result(0, page))


def page(engine: str, state: str, *, inflight: int = 0) -> str:
    prefix, label = "vllmdeploy_gateway_instance", f'instance="{engine}"'
    return (
        f'{prefix}_state{{{label},state="{state}"}} 1\n{prefix}_state{{{label},state="x"}} 0\n'
        f"{prefix}_ready{{{label}}} {int(state == 'ready')}\n"
        f"{prefix}_inflight{{{label}}} {inflight}\n"
        f'{prefix}_inflight{{instance="another"}} 7\n'
    )


def test_an_engine_goes_when_the_gateway_has_let_go_of_it_and_its_last_answer_is_out() -> None:
    plan = planned(*TURNS)
    subject = "last answer of m"
    assert missing(plan, subject, page("m", "ready")) == "the gateway has not heard of it yet"
    assert missing(plan, subject, page("m", "draining", inflight=2)) == "2 requests are at work"
    assert missing(plan, subject, page("m", "draining")) is None
    assert missing(plan, subject, page("another", "ready")) is None
    assert missing(plan, subject, "") == "the gateway does not answer"


def test_the_next_one_waits_until_requests_are_sent_to_the_new_one() -> None:
    plan = planned(*TURNS)
    subject = "m in vllm-gateway"
    plan = Plan(tuple(step for step in plan if step.verb == "await"))
    assert missing(plan, subject, page("m", "starting")) == "the gateway finds it starting"
    assert missing(plan, subject, page("another", "ready")) == "the gateway finds it unknown"
    assert missing(plan, subject, page("m", "ready")) is None
    assert missing(plan, subject, "") == "the gateway does not answer"


def test_the_engine_before_does_not_pass_for_the_new_one() -> None:
    plan = planned(*TURNS)
    old = json.dumps({"engines": {"m": {"state": "running", "generation": "1"}}})
    awaited = Plan(tuple(step for step in plan if step.verb == "await"))
    assert missing(awaited, "service m", old) == "generation 1 is running"
    new = old.replace('"1"', '"2"')
    assert missing(awaited, "service m", new) is None


def test_a_version_that_fails_at_the_second_engine_goes_from_both() -> None:
    plan = planned(*TURNS)
    begun = {step.key for step in plan.steps[:10]}
    back = way_back(rolling, TWO, TURNS, begun)
    assert [step.subject for step in back if step.verb == "write"] == [
        "service m.2",
        "vllm-gateway's instances: m.2",
        "service m",
        "vllm-gateway's instances: m",
    ]
    written = [step.command.stdin for step in back if step.subject.startswith("service")]
    assert [content for content in written if content] == [
        b'{"name": "m.2", "now": 1}',
        b'{"name": "m", "now": 1}',
    ]
    assert routed(back)[-1] == {"m": (1, False), "m.2": (1, False), "other": (1, False)}


def test_an_engine_that_was_only_drained_is_used_again() -> None:
    begun = {step.key for step in planned(*TURNS).steps[:2]}
    back = way_back(rolling, TWO, TURNS, begun)
    assert [f"{step.verb} {step.subject}" for step in back] == [
        "write vllm-gateway's instances: m",
        "await m in vllm-gateway",
    ]
    assert routed(back) == [{"m": (1, False), "m.2": (1, False), "other": (1, False)}]


def test_a_new_engine_beside_the_old_one_that_fails_leaves_the_old_one_as_it_is() -> None:
    turns = (Turn(before=None, after=version(2)), Turn(before=version(1), after=None))
    known = {"m": engine(1)}
    back = way_back(rolling, known, turns, {"gpu-01: write service m.2"})
    assert "remove service m.2" in [f"{step.verb} {step.subject}" for step in back]
    assert not any(step.subject == "service m" for step in back)
    assert routed(back)[-1] == {"m": (1, False)}


def test_engines_that_serve_nobody_go_first() -> None:
    assert order(TURNS, {"m": True, "m.2": False}) == (TURNS[1], TURNS[0])
    assert order(TURNS, {"m": True, "m.2": True}) == TURNS


def with_engines(*engines: Service, **changes: EngineState) -> FoundServices:
    return group(
        stored=stored(*engines), engines={**running(*(e.name for e in engines)), **changes}
    )


def test_the_downtime_is_said_where_nobody_serves_meanwhile() -> None:
    alone = with_engines(engine(1), m=EngineState(state="running", took_s=64.6))
    assert downtime(TURNS[:1], alone, "m") == (
        "m answers nothing from its end until its new engine has loaded, about 65 s by its last"
        " start: no cards are free for the new one beside it"
    )
    assert downtime(TURNS, with_engines(engine(1), engine(2)), "m") == ""
    assert downtime((Turn(before=None, after=version(2)), *TURNS), alone, "m") == ""


def test_replicas_get_cards_ports_and_names_of_their_own_and_answer_to_one_name() -> None:
    asked = replace(ASKED, tensor_parallel=1, replicas=3, aliases=("chat",))
    decided = decide_replicas(wanted(), asked, group(vllm=ANYWHERE))
    services = [one.service for one in decided]
    assert [(one.name, one.belongs_to, one.port) for one in services] == [
        ("m", "m", 8100),
        ("m.2", "m", 8101),
        ("m.3", "m", 8102),
    ]
    assert {one.names for one in services} == {("m", "/data/models/m", "chat")}
    found = group(stored=stored(*services))
    assert [one.name for one in engines_of(found, "m")] == ["m", "m.2", "m.3"]
    assert free_replica(group(stored=stored(*services[1:])), "m") == 1
    assert free_replica(found, "m") == 4


def test_all_cards_are_divided_among_the_replicas() -> None:
    asked = replace(ASKED, tensor_parallel=0, replicas=2)
    decided = decide_replicas(wanted(), asked, group(vllm=ANYWHERE))
    assert [one.service.tensor_parallel for one in decided] == [2, 2]


def refused(found: FoundServices, replicas: int, tensor: int = 2) -> tuple[str, ...]:
    asked = replace(ASKED, tensor_parallel=tensor, replicas=replicas)
    with pytest.raises(PreflightRefused) as caught:
        decide_replicas(wanted(), asked, found)
    return tuple(caught.value.reasons)


def test_more_replicas_than_free_cards_are_refused_as_a_whole() -> None:
    first, *_ = refused(used(group(vllm=ANYWHERE), 1), 2)
    assert first == (
        "2 replicas of 2 cards: 4 cards are needed, 3 of 4 are free (gpu-01: 2, gpu-02: 2;"
        " others on this Ray cluster hold 1)"
    )


def test_a_vllm_that_drives_from_its_own_cards_needs_one_for_each_service() -> None:
    assert refused(group(), 3, 1) == (
        "vLLM 0.17.0 needs a card of gpu-01 for every service over Ray: 3 services there, 2 cards",
    )
    several = with_engines(engine(1), service("other", cards=1, port=8105))
    assert len(refused(several, 1, 1)) == 2
