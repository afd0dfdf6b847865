from __future__ import annotations

import json

import pytest

from vllmdeploy.node.placement import cards_by_driver

NAMES = {"aa": "gpu-01", "bb": "gpu-02"}


def answer(*rows: object) -> str:
    """As the dashboard of Ray 2.60 wraps a list."""
    return json.dumps({"result": True, "data": {"result": {"total": 1, "result": rows}}})


def job(number: str, pid: object) -> dict[str, object]:
    driver = {"id": number, "node_ip_address": "10.0.0.1", "pid": pid}
    return {"job_id": number, "type": "DRIVER", "driver_info": driver}


def group(number: str, *bundles: tuple[str, dict[str, float]], state: str = "CREATED") -> object:
    shown = [{"node_id": node, "unit_resources": resources} for node, resources in bundles]
    return {"creator_job_id": number, "state": state, "bundles": shown}


def test_cards_are_counted_by_host_for_the_process_that_asked() -> None:
    jobs = answer(job("01", "70"), job("02", "90"), job("03", "95"))
    groups = answer(
        group("01", ("aa", {"GPU": 1.0, "node:10.0.0.1": 0.001}), ("aa", {"GPU": 1.0})),
        group("01", ("bb", {"GPU": 1.0})),
        group("02", ("cc", {"NPU": 2.0})),
        group("02", ("aa", {"GPU": 8.0}), state="REMOVED"),
        group("03", ("aa", {"CPU": 1.0})),
    )
    assert cards_by_driver(jobs, groups, NAMES) == {
        70: {"gpu-01": 2, "gpu-02": 1},
        90: {"cc": 2},
    }


@pytest.mark.parametrize(
    ("jobs", "groups"),
    [
        ("", ""),
        ("not JSON", answer()),
        (answer(job("01", None), 7), answer("x", group("01", ("aa", {"GPU": 1.0})))),
        (answer(job("01", "7")), '{"data": {"result": {"result": {"a": 1}}}}'),
        (answer(job("01", "7")), answer({"creator_job_id": "01", "state": "CREATED"})),
        (answer({"job_id": "01", "driver_info": []}), answer(group("01", ("aa", {"GPU": 1})))),
    ],
)
def test_what_nobody_says_is_not_known(jobs: str, groups: str) -> None:
    assert cards_by_driver(jobs, groups, NAMES) == {}
