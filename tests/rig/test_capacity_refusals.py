"""Cards whose memory is known: what has no room on them is refused before anything begins."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.plan.test_service_capacity import LLAMA_8B
from tests.rig import base, cards, fake_vllm, look
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.operate import STATE, Done, Operator, node, operator
from tests.rig.rig import Rig
from tests.support import mps_stand_in, sparse_model
from vllmdeploy.core.layout import Layout

MODELS, ENGINE = "/srv/models", "/srv/vllm"
MODEL, WHOLE_CONTEXT = "Big", 131_072
GIB = 2**30
CARD_MIB, LARGE_CARD_MIB = 24_564, 81_559
FLEET = (Profile(name="first", cards=1), Profile(name="second", cards=1))
DEVICE_REQUESTS = "docker inspect --format '{{json .HostConfig.DeviceRequests}}' \"$1\""


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    """Two hosts, each with a card of 24 GiB, a model of 32 GiB, and a vLLM that only pretends."""
    fleet = rigs.start(FLEET)
    try:
        show_cards(fleet, CARD_MIB)
        for host in fleet.hosts:
            cards.let_docker_hand_them_out(host)
            sparse_model.lay(on_disk(host, f"{MODELS}/{MODEL}"), LLAMA_8B, 32 * GIB)
            fake_vllm.interpreter(on_disk(host, ENGINE))
        yield fleet
    finally:
        fleet.remove()


@pytest.fixture(scope="module")
def made(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    fleet = operator(
        rig,
        tmp_path_factory.mktemp("operator"),
        ACCELERATOR="nvidia",
        MODEL_PATH=MODELS,
        EXECUTOR="mp",
        EXTRA_DOCKER_ARGS=f"{base.docker_args(ENGINE)} -v {ENGINE}:{ENGINE}:ro",
    )
    fleet.up()
    return fleet


@pytest.fixture
def settled(made: Operator) -> Generator[Operator]:
    """A fleet that is up and serves nothing, before and after."""
    before = made.ids()
    yield made
    assert list(services(made.hosts[0]).iterdir()) == []
    assert made.ids() == before


def show_cards(rig: Rig, memory_mib: int) -> None:
    for place, host in enumerate(rig.hosts):
        cards.show(host, [mps_stand_in.CARD.format(place)], memory_mib=memory_mib)


def on_disk(host: Host, path: str) -> Path:
    return host.disk.root / path.removeprefix("/")


def services(head: Host) -> Path:
    return on_disk(head, Layout(STATE).services)


def refused(done: Done, *said: str) -> str:
    assert (done.returncode, done.stdout) == (6, ""), done.stderr
    for words in said:
        assert words in done.stderr
    return done.stderr


def number(pattern: str, said: str) -> int:
    found = re.search(pattern, said)
    assert found, said
    return int(found[1])


def start(made: Operator, *argv: str) -> Done:
    return made.runs("start-service", MODEL, *argv)


def planned(made: Operator, *argv: str) -> dict[str, Any]:
    done = start(made, "--dry-run", "--json", *argv)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["steps"][0]["subject"] == f"service {MODEL}"
    return document


def test_cards_show_their_memory_and_docker_is_asked_for_them(settled: Operator) -> None:
    shown = json.loads(settled.succeeds("devices", "--json").stdout)["devices"]
    assert [one["memory_total_mib"] for one in shown] == [CARD_MIB, CARD_MIB]
    for host in settled.hosts:
        (request,) = json.loads(host.sh(DEVICE_REQUESTS, node(host).name).stdout)
        assert request["Capabilities"] == [["gpu"]]


def test_capacity_counts_with_the_cards_of_the_hosts_and_the_model_of_the_head(
    settled: Operator,
) -> None:
    argv = ("capacity", MODEL, "--tp", "1", "--pp", "1", "--json")
    one_card = json.loads(settled.succeeds(*argv).stdout)
    assert (one_card["verdict"], one_card["weights_bytes"]) == ("does not fit", 32 * GIB)
    assert "--pipeline-parallel-size 2 --max-model-len" in one_card["suggested"]


def test_a_model_larger_than_its_card_is_refused_with_a_division_that_has_room(
    settled: Operator,
) -> None:
    said = refused(
        start(settled, "1", "--yes"), "does not fit: 32.0 GiB of weights on 1 card of 24 GiB"
    )
    length = number(r"it would with TP 1, --pp 2 and --max-model-len (\d+)", said)
    planned(settled, "1", "--pp", "2", "--max-model-len", str(length))


def test_a_division_that_vllm_refuses_is_refused_with_those_that_it_takes(
    settled: Operator,
) -> None:
    refused(
        start(settled, "3", "--yes"),
        "32 attention heads cannot be divided by tensor parallel size 3",
        "what works here: TP 1 or 2",
    )


def test_a_context_that_has_no_room_is_refused_with_the_longest_that_surely_has(
    settled: Operator,
) -> None:
    said = refused(
        start(settled, "2", "--yes"),
        f"no room for one request of the model's whole context ({WHOLE_CONTEXT} tokens)",
    )
    longest = number(r"give --max-model-len (\d+) or less", said)
    sure = planned(settled, "2", "--max-model-len", str(longest))
    tight = planned(settled, "2", "--max-model-len", str(longest + 1))
    (note,) = set(tight["notes"]) - set(sure["notes"])
    assert f"{longest} is safe" in note


def test_vllms_own_flags_count_too_and_those_that_are_ours_are_named(settled: Operator) -> None:
    flags = (f"--max-model-len={WHOLE_CONTEXT}", "--pipeline-parallel-size=1")
    refused(
        start(settled, "2", "--yes", "--", *flags),
        f"no room for one request of {WHOLE_CONTEXT} tokens: give --max-model-len ",
        "--pipeline-parallel-size is not given here: use --pp",
    )


def test_up_refuses_a_stored_service_that_has_no_room_until_it_is_stopped(made: Operator) -> None:
    before = made.ids()
    show_cards(made.rig, LARGE_CARD_MIB)
    # An engine that runs has proved itself; this one ends at once, as one without room does.
    spec = planned(made, "1", "--", "--die")["steps"][0]["stdin"]
    show_cards(made.rig, CARD_MIB)
    folder = services(made.hosts[0])
    (folder / f"{MODEL}.json").write_text(spec)
    for argv in (("plan",), ("up", "--yes")):
        refused(
            made.runs(*argv),
            f"service {MODEL}: does not fit: 32.0 GiB of weights on 1 card of 24 GiB",
            "`vllmdeploy stop-service NAME` takes it out of the way",
        )
    made.succeeds("stop-service", MODEL, "--yes")
    assert list(folder.iterdir()) == []
    assert "nothing to do" in made.succeeds("plan").stdout
    assert made.ids() == before
    made.down()
    assert [name for host in made.hosts for name in look.containers(host)] == []
