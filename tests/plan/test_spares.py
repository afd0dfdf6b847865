from __future__ import annotations

from dataclasses import replace

from tests.plan.builders import TOKEN, after, bare, joined, lines, settled, wanted
from vllmdeploy.accelerators import registry
from vllmdeploy.core.plan import Draft, Plan
from vllmdeploy.plan.group import decide_group
from vllmdeploy.plan.node_steps import Payload
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.spares import Lineup, lineup, retire
from vllmdeploy.plan.supervise import InDocker
from vllmdeploy.plan.up import plan_up

FLEET = [
    bare("gpu-01", "10.0.0.1", head=True),
    bare("gpu-02", "10.0.0.2"),
    bare("gpu-03", "10.0.0.3", spare=True),
    bare("gpu-04", "10.0.0.4", spare=True),
]
HOSTS = [one.host for one in FLEET]


def there(found: list[FoundHost], *gone: str) -> dict[str, FoundHost]:
    return {one.host.name: one for one in found if one.host.name not in gone}


def lined(found: list[FoundHost], *gone: str) -> Lineup:
    return lineup("vllm", HOSTS, there(found, *gone))


def names(one: Lineup) -> list[str]:
    return [host.host.name for host in one.active]


def planned(found: list[FoundHost], *gone: str) -> Plan:
    """As `up` does it, without its services."""
    what, one = wanted(), lined(found, *gone)
    group = decide_group(
        what,
        "default",
        one.active,
        lambda host: registry.named(host.cards.vendor),
        standing_in=one.standing_in,
    )
    plan = plan_up(what, {"default": group}, Payload(b"zip", TOKEN), InDocker())
    draft = Draft(list(plan.steps))
    retire(draft, "vllm", one, there(found, *gone), InDocker())
    return draft.finished()


def up(*gone: str, ray_of: int = 2) -> list[FoundHost]:
    """The fleet once its first members are up, as Ray has them."""
    grown = settled(wanted(), FLEET[:ray_of])
    return [*grown, *FLEET[ray_of:]]


def without_ray_of(found: list[FoundHost], name: str) -> list[FoundHost]:
    """As when the host died: Ray has noticed."""
    left = [one for one in found if one.host.name != name and not one.host.spare]
    head = joined(left)[0]
    return [head, *found[1:]]


def test_a_spare_is_no_member_while_nobody_is_missing() -> None:
    assert names(lined(up())) == ["gpu-01", "gpu-02"]
    assert lines(planned(up())) == ""
    assert names(lined(FLEET)) == ["gpu-01", "gpu-02"]


def test_a_spare_takes_the_place_of_a_host_that_is_dead_for_ray_too() -> None:
    found = without_ray_of(up(), "gpu-02")
    one = lined(found, "gpu-02")
    assert (names(one), one.standing_in, one.fresh) == (
        ["gpu-01", "gpu-03"],
        {"gpu-03": "gpu-02"},
        ("gpu-03",),
    )
    assert [
        line for line in lines(planned(found, "gpu-02")).splitlines() if "create v" in line
    ] == ["gpu-03: create vllm-ray-worker (not found)"]


def test_a_host_that_ray_still_has_is_not_replaced() -> None:
    one = lined(up(), "gpu-02")
    assert one.lost == {"gpu-02": "Ray still reports it: only the way from here to it is broken"}


def test_without_a_spare_or_for_a_head_nothing_can_take_the_place() -> None:
    found = without_ray_of(up(), "gpu-02")
    assert lined(found, "gpu-02", "gpu-03", "gpu-04").lost == {
        "gpu-02": "no spare of its group is left"
    }
    assert "gpu-01" in lined(found, "gpu-01").lost


def replaced() -> list[FoundHost]:
    """gpu-03 has the place of gpu-02, which is back with what it ran before."""
    found = without_ray_of(up(), "gpu-02")
    hosts = after(planned(found, "gpu-02"), found)
    return [*joined([hosts[0], hosts[2]])[:1], *hosts[1:]]


def test_a_spare_keeps_the_place_and_the_label_says_so() -> None:
    found = replaced()
    (node,) = found[2].ours("vllm")
    assert node.stands_in_for == "gpu-02"
    away = lined(found, "gpu-02")
    assert (names(away), away.fresh, away.retired) == (
        ["gpu-01", "gpu-03"],
        (),
        {"gpu-04": "it is a spare"},
    )
    assert lines(planned(found, "gpu-02")) == ""


def test_what_ran_on_a_host_before_it_was_replaced_is_taken_away_when_it_is_back() -> None:
    found = replaced()
    assert lines(planned(found)) == (
        "gpu-02: stop vllm-ray-worker (gpu-03 has its place)\n"
        "gpu-02: remove vllm-ray-worker (gpu-03 has its place)"
    )
    assert planned(found).destructive
    hosts = [found[0], replace(found[1], containers=()), *found[2:]]
    assert lines(planned(hosts)) == ""


def test_a_spare_that_became_a_member_of_the_list_is_one() -> None:
    found = replaced()
    hosts = [replace(one, spare=False) if one.name == "gpu-03" else one for one in HOSTS]
    by_name = there(found)
    by_name["gpu-03"] = replace(by_name["gpu-03"], host=hosts[2])
    one = lineup("vllm", hosts, by_name)
    assert (names(one), one.standing_in) == (["gpu-01", "gpu-02", "gpu-03"], {})
