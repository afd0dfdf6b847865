"""Hosts that lack an image get one and the same, whatever happens to its tag meanwhile."""

from __future__ import annotations

from dataclasses import replace

from tests.plan.builders import IMAGE, bare, decided, lines, wanted
from vllmdeploy.core.plan import Plan
from vllmdeploy.plan.image_pull import plan_pulls
from vllmdeploy.plan.observed import FoundHost

DIGEST, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
NAME = "vllm/vllm-openai:v0.17.0"
PINNED = f"vllm/vllm-openai@{DIGEST}"


def lacking(name: str, last: int, **changes: object) -> FoundHost:
    found = bare(name, f"10.0.0.{last}", head=last == 1, image=None, contents=None)
    return replace(found, **changes)  # type: ignore[arg-type]  # fields of a host


def pulls(*found: FoundHost) -> Plan:
    return plan_pulls(wanted(), decided(wanted(), list(found)))


def commands(plan: Plan) -> list[str]:
    return [f"{step.host}: {step.command}" for step in plan]


def test_the_first_word_of_the_registry_holds_for_all() -> None:
    plan = pulls(lacking("gpu-01", 1, offered=DIGEST), lacking("gpu-02", 2, offered=OTHER))
    assert commands(plan) == [
        f"{host}: docker {words}"
        for host in ("gpu-01", "gpu-02")
        for words in (f"pull {PINNED}", f"tag {PINNED} {NAME}")
    ]
    assert lines(plan).splitlines()[1] == f"gpu-01: tag image {NAME} (pulled by digest)"


def test_what_a_host_of_the_group_has_is_what_the_others_get() -> None:
    had = bare("gpu-01", "10.0.0.1", head=True)
    had = replace(had, image=replace(IMAGE, digests=(f"vllm/vllm-openai@{DIGEST}",)))
    assert commands(pulls(had, lacking("gpu-02", 2, offered=OTHER))) == [
        f"gpu-02: docker pull {PINNED}",
        f"gpu-02: docker tag {PINNED} {NAME}",
    ]


def test_where_nobody_knows_the_digest_one_host_pulls_first() -> None:
    first, second = lacking("gpu-01", 1), lacking("gpu-02", 2)
    assert commands(pulls(first, second)) == [f"gpu-01: docker pull {NAME}"]
    pulled = replace(first, image=replace(IMAGE, digests=(PINNED,)))
    assert commands(pulls(pulled, second)) == [
        f"gpu-02: docker pull {PINNED}",
        f"gpu-02: docker tag {PINNED} {NAME}",
    ]


def test_a_name_with_a_digest_is_pulled_as_it_is_by_all() -> None:
    name = f"vllm/vllm-openai@{OTHER}"
    plan = pulls(*(lacking(f"gpu-0{n}", n, image_name=name, offered=DIGEST) for n in (1, 2)))
    assert commands(plan) == [f"gpu-0{n}: docker pull {name}" for n in (1, 2)]


def test_where_nothing_is_lacking_or_something_is_refused_nothing_is_pulled() -> None:
    assert pulls(bare("gpu-01", "10.0.0.1", head=True)).steps == ()
    assert pulls(lacking("gpu-01", 1, unpullable="denied")).steps == ()
