"""A model over two hosts without Ray, of which one dies for good: a spare takes its place."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.rig import base
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.operate import Operator, operator
from tests.rig.programs import until
from tests.rig.rig import Rig
from tests.rig.service_engine import make_tiny_model, need_engine
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
    made = operator(rig, tmp_path_factory.mktemp("operator"))
    made.writes(
        MODEL_PATH=str(base.MODELS),
        EXECUTOR="mp",
        SHM_SIZE="256m",
        EXTRA_DOCKER_ARGS=base.docker_args(str(base.ENGINE)),
        EXTRA_ENV="VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1",
        EXTRA_VLLM_ARGS="--enforce-eager --load-format dummy",
        MAX_MODEL_LEN=256,
    )
    lines = {host.name: "ray_gpus=1" for host in rig.hosts}
    made.writes_lines(lines | {"first": "head=yes ray_gpus=1", "extra": "ray_gpus=1 spare=yes"})
    made.up()
    started = made.runs("start-service", MODEL, "2", "--yes", limit_s=900)
    assert started.returncode == 0, started.stderr
    shown = next(line for line in started.stdout.splitlines() if line.startswith("API key"))
    return made, shown.split()[-1]


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
