from __future__ import annotations

import subprocess
import sys

import pytest

from vllmdeploy.routing.load import Load, Observed
from vllmdeploy.routing.upstream import (
    NO_AFFINITY,
    PREFIX_LENGTHS,
    Address,
    Upstream,
    affinity_of,
)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("10.0.0.1", 8000), "http://10.0.0.1:8000"),
        (Address("fd00::1", 8000), "http://[fd00::1]:8000"),
        (Address("gpu-1", 443, tls=True, prefix="/api"), "https://gpu-1:443/api"),
    ],
)
def test_an_address_reads_as_a_url(address: Address, text: str) -> None:
    assert str(address) == text


@pytest.mark.parametrize("bad", [{"weight": 0.0}, {"cost": -1.0}, {"limit": 0}])
def test_an_upstream_without_weight_cost_or_room_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="upstream a: weight, cost and limit must be above zero"):
        Upstream("a", Address("h", 1), **bad)  # type: ignore[arg-type]  # one of three kinds


def test_hashes_are_the_same_in_every_process() -> None:
    here = affinity_of("x" * 300, "bob")
    code = "from vllmdeploy.routing.upstream import *; print(affinity_of('x'*300, 'bob'))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == repr(here)


def test_a_growing_conversation_keeps_the_hashes_of_its_earlier_turns() -> None:
    short, long = affinity_of("a" * 600), affinity_of("a" * 600 + "b" * 1000)
    assert short.prefixes == long.prefixes[: len(short.prefixes)]
    assert len(short.prefixes) == 3
    assert len(long.prefixes) == 4


def test_prompts_that_differ_early_share_no_hash() -> None:
    assert not set(affinity_of("a" + "x" * 4000).prefixes) & set(
        affinity_of("b" + "x" * 4000).prefixes
    )


def test_a_prompt_without_end_has_no_more_hashes_than_lengths() -> None:
    assert len(affinity_of("x" * 4_000_000).prefixes) == len(PREFIX_LENGTHS)


def test_text_that_is_no_valid_unicode_is_hashed_all_the_same() -> None:
    assert affinity_of("\ud800", "\udfff") != NO_AFFINITY
    assert affinity_of() == NO_AFFINITY


def test_load_counts_what_is_ours_and_what_others_hold() -> None:
    load = Load()
    load.begin()
    load.begin()
    load.poll(Observed(at=1, running=5, waiting=2))
    assert (load.inflight, load.others, load.pending) == (2, 5, 7)
    load.end(2.0, seconds=4.0)
    assert (load.pending, load.latency_s) == (6, 4.0)


def test_a_failed_request_does_not_look_like_a_fast_one() -> None:
    load = Load()
    load.begin()
    load.end(1.0)
    assert (load.inflight, load.latency_s) == (0, 0.0)


def test_latency_follows_new_samples_slowly() -> None:
    load = Load()
    for seconds in (1.0, 2.0):
        load.first_byte(seconds)
    assert load.first_byte_s == pytest.approx(1.2)


def test_pace_comes_from_the_engines_counters() -> None:
    load = Load()
    load.poll(Observed(at=10, running=4, generated_tokens=1000))
    load.poll(Observed(at=12, running=4, generated_tokens=1400))
    assert load.pace_s == pytest.approx(4 * 2 / 400)


@pytest.mark.parametrize(
    "second",
    [
        Observed(at=12, running=4, generated_tokens=10),
        Observed(at=10, running=4, generated_tokens=1400),
        Observed(at=12, running=0, generated_tokens=1000),
    ],
)
def test_no_pace_is_read_across_a_restart_or_out_of_nothing(second: Observed) -> None:
    load = Load()
    load.poll(Observed(at=10, running=4, generated_tokens=1000))
    load.poll(second)
    assert load.pace_s == 0.0


def test_a_bad_record_fades_while_nobody_uses_the_upstream() -> None:
    load = Load(latency_s=100.0, first_byte_s=10.0, pace_s=1.0)
    for at in range(40, 140, 2):
        load.poll(Observed(at=float(at)))
    assert load.latency_s < 10.0
    assert load.first_byte_s < 1.0
    assert load.pace_s < 0.1


def test_only_the_latest_prefixes_are_remembered() -> None:
    load = Load()
    load.begin((1,))
    for prefix in range(2, 4097):
        load.begin((prefix,))
    load.begin((1,))
    load.begin((5000,))
    assert 1 in load.prefixes
    assert 2 not in load.prefixes
    assert len(load.prefixes) == 4096
