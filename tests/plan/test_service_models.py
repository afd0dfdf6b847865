from __future__ import annotations

from dataclasses import replace

import pytest

from tests.plan.service_builders import MODEL, group
from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Plan, Run, Step
from vllmdeploy.plan.service_models import Lacking, as_if_there, lacking, together
from vllmdeploy.tools.vllm_model import FoundModel

READY = FoundModel(there=True, digest="d1", managed=True, config="{}")
UNFINISHED = FoundModel(there=True, managed=True, config="{}")
BY_HAND = FoundModel(there=True, config="{}")
OTHER = FoundModel(there=True, digest="d2", managed=True, config="{}")


@pytest.mark.parametrize(
    ("found", "hosts"),
    [
        ({"a": READY, "b": READY}, set()),
        ({"a": READY, "b": FoundModel(), "c": UNFINISHED}, {"b", "c"}),
        ({"a": FoundModel(), "b": READY}, {"a"}),
        ({"a": READY, "b": BY_HAND, "c": OTHER}, set()),
        ({"a": BY_HAND, "b": FoundModel()}, set()),  # nobody has a whole one
        ({"a": FoundModel(), "b": FoundModel()}, set()),
        ({}, set()),
    ],
)
def test_what_can_be_brought_is_named_with_the_hosts_that_need_it(
    found: dict[str, FoundModel], hosts: set[str]
) -> None:
    assert lacking("m", found) == ((Lacking("m", frozenset(hosts)),) if hosts else ())


def test_only_hosts_that_need_it_are_named() -> None:
    found = {"a": FoundModel(), "b": READY, "c": FoundModel()}
    assert lacking("m", found, {"a", "b"}) == (Lacking("m", frozenset({"a"})),)
    assert lacking("m", found, {"b"}) == ()


def test_a_plan_is_made_as_if_it_were_there() -> None:
    whole = replace(MODEL, managed=True, digest="d1")
    found = group(models={"gpu-01": whole, "gpu-02": FoundModel()})
    assert as_if_there(found, ()).models == found.models
    there = as_if_there(found, lacking("m", found.models))
    assert there.models == {"gpu-01": whole, "gpu-02": whole}


def test_what_two_plans_begin_with_is_shown_once() -> None:
    def step(subject: str) -> Step:
        return Step("a", "write", subject, "why", Run(Command(("true",))))

    one = Plan((step("key"), step("m")), ("slow",))
    two = Plan((step("key"), step("n")), ("slow", "late"))
    assert together([one, two]) == Plan((step("key"), step("m"), step("n")), ("slow", "late"))
