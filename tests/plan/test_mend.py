from __future__ import annotations

import pytest

from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Plan, Run, Step
from vllmdeploy.plan.mend import Patience, decided_by_somebody, without, without_retries


def step(host: str, verb: str, cause: str = "stopped", *needs: str) -> Step:
    return Step(host, verb, "node", cause, Run(Command(("true",))), needs)


def keys(plan: Plan) -> list[str]:
    return [one.key for one in plan]


@pytest.mark.parametrize(
    ("cause", "decided"),
    [
        ("it is exited (137)", ()),
        ("not found", ()),
        ("its warden gave up: ray ended", ()),
        ("the head starts anew", ()),
        ("settings changed", ("b",)),
        ("differs from the head's", ("b",)),
        ("b is a ray-worker now", ("b",)),
    ],
)
def test_damage_is_mended_and_what_somebody_decided_is_not(
    cause: str, decided: tuple[str, ...]
) -> None:
    assert decided_by_somebody(Plan((step("a", "start"), step("b", "remove", cause)))) == decided


def test_a_plan_without_a_host_is_without_what_needs_it_too() -> None:
    plan = Plan(
        (
            step("a", "start"),
            step("b", "start"),
            step("a", "await", "x", "b: start node"),
            step("a", "write", "x", "a: await node"),
            step("c", "start", "x", "a: start node"),
        )
    )
    assert keys(without(plan, {"b"})) == ["a: start node", "c: start node"]
    assert keys(without_retries(plan, {"b: start node"}))[:2] == ["a: start node", "a: await node"]


def test_a_host_that_cannot_be_mended_is_tried_at_longer_and_longer_pauses() -> None:
    patience = Patience()
    now, pauses = 0.0, list[float]()
    for _ in range(7):
        patience.learn(now, worked={"a"}, failed={"b"})
        pauses.append(patience.resting(now)["b"])
        now += pauses[-1]
        assert patience.resting(now) == {}
    assert pauses == [30, 60, 120, 300, 600, 600, 600]
    patience.learn(now, worked={"b"}, failed=())
    patience.learn(now, worked=(), failed={"b"})
    assert patience.resting(now) == {"b": 30}
