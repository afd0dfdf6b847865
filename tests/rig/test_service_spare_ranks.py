"""A model over two hosts without Ray, of which one dies for good: a spare takes its place."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import Operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.service_engine import make_tiny_model, need_engine, serve_without_ray
from tests.rig.test_rig_watched import watching
from tests.rig.test_service_ranks import MODEL, answers, engines_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

FLEET = tuple(Profile(name=name, cards=1) for name in ("first", "second", "extra"))


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    need_engine()
    make_tiny_model(MODEL)
    fleet = rigs.start(FLEET)
    yield fleet
    fleet.remove()


@pytest.fixture(scope="module")
def served(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Operator, str]:
    lines = {host.name: "ray_gpus=1" for host in rig.hosts}
    lines |= {"first": "head=yes ray_gpus=1", "extra": "ray_gpus=1 spare=yes"}
    return serve_without_ray(rig, tmp_path_factory.mktemp("operator"), MODEL, lines)


def test_a_spare_takes_a_dead_hosts_rank_and_the_model_answers_again(
    rig: Rig, served: tuple[Operator, str]
) -> None:
    made, key = served
    dead, spare = rig["second"], rig["extra"]
    assert answers(rig, key)
    assert engines_of(dead).keys() == {MODEL}
    with watching(made, "--every", "1", "--spare-after", "5") as said:
        dead.power_off()
        until("the API stops answering", lambda: not answers(rig, key), limit_s=60)
        until("the API answers again", lambda: answers(rig, key), limit_s=900, every_s=1)
        assert engines_of(spare).keys() == {MODEL}
        dead.boot()
        until(
            "the host is taken away",
            lambda: "replaced" in made.status()["second"]["state"],
            limit_s=120,
            every_s=2,
        )
    assert f"{spare.ip}: create vllm-ray-worker" in "".join(said)
    assert answers(rig, key)
    assert made.status()["extra"]["state"] == "ready"
