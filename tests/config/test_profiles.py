"""Profiles fill the keys that are not set, and nothing else."""

from __future__ import annotations

import pytest

from vllmdeploy.config.profiles import MODEL_SIZES, PROFILES, profile, resolve, taken
from vllmdeploy.config.settings import Settings
from vllmdeploy.errors import UsageError


def test_instances_take_the_seeds_values() -> None:
    wanted = resolve(Settings(), profile("instances"))
    assert (wanted.max_num_seqs, wanted.gpu_memory_utilization, wanted.max_model_len) == (
        6,
        0.96,
        8192,
    )
    assert wanted.vllm_ports == (8001, 8002, 8003, 8004)
    assert wanted.max_num_batched_tokens is None


def test_a_key_that_is_set_is_kept() -> None:
    mine = Settings(max_num_seqs=64)
    assert resolve(mine, profile("instances")).max_num_seqs == 64
    assert "max_num_seqs" not in taken(mine, profile("instances"))


@pytest.mark.parametrize(
    ("name", "values", "model_size"),
    [
        (None, (2, 1024, 32768, 0.9, 8, 1), "4B"),
        ("production", (2, 1024, 32768, 0.9, 8, 1), "4B"),
        ("low-resource", (1, 256, 8192, 0.6, 2, 1), "0.6B"),
        ("multi-gpu", (4, 2048, 65536, 0.95, 16, 2), "8B"),
    ],
)
def test_rerank_has_the_three_profiles_of_the_seed(
    name: str | None, values: tuple[float, ...], model_size: str
) -> None:
    chosen = profile("rerank", name)
    wanted = resolve(Settings(), chosen)
    resolved: tuple[float | None, ...] = (
        wanted.workers,
        wanted.max_num_seqs,
        wanted.max_num_batched_tokens,
        wanted.gpu_memory_utilization,
        wanted.max_workers,
        wanted.tensor_parallel_size,
    )
    assert resolved == values
    assert chosen.model_size == model_size
    assert model_size in {size.name for size in MODEL_SIZES}


def test_a_misspelt_profile_names_the_right_ones() -> None:
    with pytest.raises(UsageError) as error:
        profile("rerank", "Low_Resource")
    assert str(error.value) == (
        "'Low_Resource' is not a profile of rerank: production, low-resource, multi-gpu; "
        "did you mean low-resource?"
    )


def test_every_value_of_a_profile_is_a_valid_setting() -> None:
    for chosen in (chosen for group in PROFILES.values() for chosen in group):
        checked = Settings.model_validate(chosen.values)
        assert {name: getattr(checked, name) for name in chosen.values} == chosen.values
