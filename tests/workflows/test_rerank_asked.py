"""From a profile, settings and flags to the engines of a rerank service."""

from __future__ import annotations

from typing import Any

import pytest

from vllmdeploy.config.settings import Settings
from vllmdeploy.errors import UsageError
from vllmdeploy.plan.instances_mps import Sharing
from vllmdeploy.workflows.instances_asked import CardShares
from vllmdeploy.workflows.rerank import asked_for


def settings(**given: Any) -> Settings:
    return Settings.model_validate(given)


def test_the_usual_is_the_seeds_production_profile() -> None:
    asked = asked_for(settings())
    wanted, engine = asked.instances, asked.instances.engine
    assert (wanted.count, wanted.per_card) == (2, 2)
    assert engine.model == "Qwen/Qwen3-Reranker-4B"
    assert engine.task == "rerank"
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (1024, 32768)
    assert (engine.gpu_memory_utilization, engine.tensor_parallel) == (0.9, 1)
    assert asked.rerank.max_workers == 8
    assert wanted.sharing == Sharing(pipe="/tmp/nvidia-mps", log="/tmp/nvidia-log", uid=0)
    assert asked.from_profile[0] == "WORKERS=2"


def test_what_is_set_wins_over_the_profile() -> None:
    mine = settings(workers=3, max_num_seqs=64, tensor_parallel_size=2)
    asked = asked_for(mine, model_size="8b", profile_name="low-resource")
    assert (asked.instances.count, asked.instances.engine.max_num_seqs) == (3, 64)
    assert asked.instances.engine.model == "Qwen/Qwen3-Reranker-8B"
    assert asked.instances.engine.tensor_parallel == 2
    assert "WORKERS=1" not in asked.from_profile


def test_another_model_takes_the_place_of_the_sizes() -> None:
    asked = asked_for(settings(), model="BAAI/bge-reranker-v2-m3")
    assert asked.instances.engine.model == "BAAI/bge-reranker-v2-m3"
    assert (asked.rerank.model, asked.rerank.size) == ("bge-reranker-v2-m3", None)


@pytest.mark.parametrize(
    ("mine", "shares"),
    [
        (settings(), CardShares(no_mps=True)),
        (settings(cuda_mps_enable=False), CardShares()),
        (settings(vllm_use_mps=False), CardShares()),
    ],
)
def test_one_flag_goes_back_to_one_process(mine: Settings, shares: CardShares) -> None:
    asked = asked_for(mine, shares=shares)
    assert (asked.instances.count, asked.instances.per_card) == (1, 1)
    assert asked.instances.sharing is None


def test_wishes_that_cannot_be_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="--model and --model-size say the same"):
        asked_for(settings(), model="m", model_size="4B")
    with pytest.raises(UsageError) as error:
        asked_for(settings(max_num_batched_tokens=512))
    assert str(error.value) == (
        "MAX_NUM_BATCHED_TOKENS=512 is less than MAX_NUM_SEQS=1024\n"
        "  -> a step holds at least one token of each sequence: raise one or lower the other"
    )
    with pytest.raises(UsageError, match="did you mean production"):
        asked_for(settings(), profile_name="prodction")


def test_an_engine_outside_containers_runs_as_whoever_starts_it() -> None:
    sharing = asked_for(settings(runtime="process")).instances.sharing
    assert sharing is not None
    assert sharing.uid is None
