from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

import pytest

from vllmdeploy.errors import UsageError
from vllmdeploy.routing import policies
from vllmdeploy.routing.policies.least_inflight import LeastInflight
from vllmdeploy.routing.policies.registry import GROUP


def own(value: str) -> Iterable[EntryPoint]:
    return (EntryPoint("mine", value, GROUP),)


def never_asked() -> Iterable[EntryPoint]:
    raise AssertionError("installed packages were searched for a policy of ours")


def no_policy(chance: policies.Chance) -> object:
    return object()


def test_the_names_are_those_of_the_contract() -> None:
    assert " ".join(policies.names()) == (
        "round_robin random least_inflight power_of_two consistent_hash prefix_affinity weighted "
        "cost_optimized adaptive load_balanced"
    )
    assert policies.DEFAULT in policies.names()


@pytest.mark.parametrize("name", policies.names())
def test_our_own_policies_need_no_search_of_what_is_installed(name: str) -> None:
    assert callable(policies.create(name, installed=never_asked).order)


def test_load_balanced_is_another_name_of_least_inflight() -> None:
    assert isinstance(policies.create("load_balanced"), LeastInflight)


def test_a_users_own_policy_comes_from_its_entry_point() -> None:
    module = "vllmdeploy.routing.policies.power_of_two:PowerOfTwo"
    made = policies.create("mine", installed=lambda: own(module))
    assert type(made).__name__ == "PowerOfTwo"


def test_an_entry_point_that_is_no_policy_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        policies.create("mine", installed=lambda: own(f"{no_policy.__module__}:no_policy"))
    assert str(caught.value) == (
        f"routing policy mine ({no_policy.__module__}:no_policy) has no method order\n"
        "  -> an entry point of vllmdeploy.policies is called with a chance() and returns a policy"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("round-robin", "did you mean round_robin?"),
        ("Adaptve", "did you mean adaptive?"),
        ("min", "did you mean mine?"),
        ("???", f"known: {', '.join(policies.names())}, mine"),
    ],
)
def test_a_misspelt_policy_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        policies.create(name, installed=lambda: own("json:loads"))
    assert str(caught.value) == f"unknown routing policy {name!r}\n  -> {hint}"
