"""Services whose host is dead and has a spare in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.plan.builders import lines, wanted
from tests.plan.service_builders import ASKED, VLLM, group
from vllmdeploy.core.plan import Draft
from vllmdeploy.plan import service_ranks as ranks
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.service import decide_service
from vllmdeploy.plan.service_spares import models_wanted, placed_anew
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.plan.supervise import InDocker
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm_engine import EngineFile
from vllmdeploy.tools.vllm_services import Service, Stored
from vllmdeploy.tools.warden import Warden

MP = wanted(executor="mp")
SPANNING = replace(VLLM, flags=VLLM.flags | {"--nnodes", "--headless"})


def without_ray(*services: tuple[str, int]) -> FoundServices:
    """Two hosts of two cards, and services of so many cards, started one after another."""
    found = group(MP)
    members = tuple(
        replace(
            one,
            executor="mp",
            found=replace(one.found, ray=None, wardens={"n": Warden(without_ray=True)}),
        )
        for one in found.members
    )
    found = replace(found, members=members, vllm=SPANNING)
    for name, cards in services:
        found = replace(found, stored={**found.stored, name: started(found, name, cards)})
    return found


def started(found: FoundServices, name: str, cards: int) -> Stored:
    asked = replace(ASKED, name=name, tensor_parallel=cards)
    decided = decide_service(MP, asked, found)
    return Stored(file=f"{name}.json", content=decided.file.content(), service=decided.service)


def second_replaced(found: FoundServices, *, cards: int = 2) -> FoundServices:
    """gpu-02 is dead, and gpu-09 stands in for it."""
    second = found.members[1]
    spare = replace(
        second,
        found=replace(second.found, host=replace(second.found.host, name="gpu-09", spare=True)),
        place=replace(second.place, ip="10.0.0.9"),
        share=replace(second.share, cards=second.share.cards[:cards], declared=0),
        stands_in_for="gpu-02",
    )
    return replace(found, members=(found.members[0], spare))


def document_of(kept: Mapping[str, Stored], name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(kept[name].content)
    return document


def placements(kept: Mapping[str, Stored]) -> dict[str, object]:
    return {name: one.service.placement for name, one in kept.items() if one.service}


def test_a_service_by_ray_waits_for_the_spare_under_a_new_generation() -> None:
    what: Wanted = wanted()
    service = Service(name="m", model="model", names=("m",), port=1, generation=4)
    file = EngineFile(
        name="m",
        argv=("x",),
        environment={"VLLMDEPLOY_GENERATION": "4"},
        nodes=("gpu-01", "gpu-02"),
        service=service.document(),
    )
    one = Stored(file="m.json", content=file.content(), service=service)
    other = Stored(file="x.json", content=b"")
    found = second_replaced(group(what, stored={"m": one, "x": other}))
    changed = placed_anew(what, found).changed
    assert list(changed) == ["m"]
    document = document_of(changed, "m")
    assert document["nodes"] == ["gpu-01", "gpu-09"]
    assert document["env"]["VLLMDEPLOY_GENERATION"] == "5"
    assert document["service"]["generation"] == 5
    again = replace(found, stored=changed)
    assert placed_anew(what, again).changed == {}
    assert models_wanted(found) == {"gpu-09": {"model"}}


def test_ranks_of_a_dead_host_go_to_its_spare() -> None:
    changed = placed_anew(MP, second_replaced(without_ray(("m", 4)))).changed
    assert placements(changed) == {"m": {"gpu-01": (0, 1), "gpu-09": (0, 1)}}
    document = document_of(changed, "m")
    assert document["ranks"]["hosts"] == [["gpu-01", "10.0.0.1"], ["gpu-09", "10.0.0.9"]]
    assert document["ranks"]["generation"] == document["env"]["VLLMDEPLOY_GENERATION"] == "2"
    assert set(ranks.files_elsewhere(changed["m"].content, "gpu-01")) == {"gpu-09"}


def test_a_service_that_a_dead_host_led_is_led_by_its_spare() -> None:
    found = second_replaced(without_ray(("first", 2), ("second", 1), ("third", 1)))
    assert models_wanted(found) == {"gpu-09": {"m"}}
    anew = placed_anew(MP, found)
    # Each has cards of its own there, as before.
    assert placements(anew.changed) == {"second": {"gpu-09": (0,)}, "third": {"gpu-09": (1,)}}
    document, service = document_of(anew.changed, "third"), anew.changed["third"].service
    assert service is not None
    assert (document["node"], service.leader, service.host) == ("gpu-09", "gpu-09", "10.0.0.9")
    assert document["health_url"] == f"{service.url}/health"
    assert "10.0.0.2" not in anew.changed["third"].content.decode()
    assert document["env"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert placed_anew(MP, replace(found, stored=anew.changed)).changed == {}


def test_a_spare_with_too_few_cards_is_named_and_the_rest_moves() -> None:
    found = second_replaced(without_ray(("first", 2), ("second", 1), ("third", 1)), cards=1)
    anew = placed_anew(MP, found)
    assert placements(anew.changed) == {"second": {"gpu-09": (0,)}}
    assert anew.notes == ("service third lost gpu-02: 1 card is needed, gpu-09 has 0 free",)


def test_where_nobody_stands_in_nothing_moves() -> None:
    found = without_ray(("m", 4))
    assert (placed_anew(MP, found).changed, models_wanted(found)) == ({}, {})


def test_a_spare_that_is_only_a_spare_again_gives_its_place_back() -> None:
    before = second_replaced(without_ray(("m", 4)))
    moved = placed_anew(MP, before).changed
    returned = replace(without_ray(), stored=moved)
    assert placed_anew(MP, returned).changed == {}
    back = placed_anew(MP, returned, {"gpu-09"}).changed
    assert placements(back) == {"m": {"gpu-01": (0, 1), "gpu-02": (0, 1)}}
    assert document_of(back, "m")["ranks"]["generation"] == "3"


def test_files_of_ranks_that_are_elsewhere_now_are_removed() -> None:
    found = without_ray(("m", 4))
    found = replace(found, elsewhere={"gpu-02": {"m.json": "x", "old.json": "y"}})
    here = Ground(
        draft=Draft(), wanted=MP, supervisor=InDocker(), head=found.head, members=found.with_ranks
    )
    steps.remove_strays(here, found)
    assert lines(here.draft.finished()) == (
        "gpu-02: remove service old (no rank of it is here any more)"
    )
