"""Stored instances that do not run: which are brought back, and what `status` says of each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.plan.builders import bare
from tests.plan.instance_builders import asked, decide, fleet, kept
from vllmdeploy.core.spec import CLUSTER_LABEL, ROLE_LABEL
from vllmdeploy.errors import HostUnreachable
from vllmdeploy.plan.instances_back import lacking_of, on_members
from vllmdeploy.plan.instances_known import known_on
from vllmdeploy.tools.docker import Container
from vllmdeploy.tools.vllm_engine import EngineState
from vllmdeploy.tools.warden import Warden

FOUND = fleet()
STORED = kept(decide(asked(4), FOUND))  # 1 and 3 on gpu-01, 2 and 4 on gpu-02
FIRST = next(one.service for one in STORED.values() if one.service)
NODE = f"vllm-instance-{FIRST.name}"


@pytest.mark.parametrize(
    ("engines", "all_of_them", "one_by_one"),
    [
        pytest.param("1+ 2+ 3+ 4+", "", "", id="all well"),
        pytest.param("", "1 2 3 4", "1 2", id="none is there"),
        pytest.param("1+ 2+", "3 4", "3 4", id="those that are not there"),
        pytest.param("1~ 2+", "1 3 4", "4", id="one loads, the next has to wait"),
        pytest.param("1! 2+ 4+", "1 3", "3", id="one was given up"),
    ],
)
def test_what_runs_is_left_alone_and_the_rest_comes_back(
    engines: str, all_of_them: str, one_by_one: str
) -> None:
    words = {"+": "running", "~": "starting", "!": "crash-loop"}
    states = {f"m-{one[0]}": EngineState(state=words[one[1]]) for one in engines.split()}
    found = replace(FOUND, stored=STORED, engines=states)
    for patient, expected in ((True, all_of_them), (False, one_by_one)):
        names = [one.name for one in lacking_of(found, patient=patient)]
        assert names == [f"m-{number}" for number in expected.split()]


def test_instances_on_hosts_that_are_gone_are_left_out() -> None:
    smaller = fleet(bare("gpu-01", "10.0.0.1", head=True), stored=STORED)
    assert [one.name for one in on_members(smaller).instances] == ["m-1", "m-3"]


def container(state: str) -> Container:
    labels = {CLUSTER_LABEL: "vllm", ROLE_LABEL: "instance"}
    return Container(id="c", name=NODE, image="i", image_id="i", state=state, labels=labels)


RUNNING = (container("running"),)
BACK = "`vllmdeploy up` or `vllmdeploy instances restart m --number 1` brings it back"


@pytest.mark.parametrize(
    ("host", "state", "why"),
    [
        pytest.param(None, "lost", "gpu-01 is not in the fleet", id="left the list"),
        pytest.param(
            HostUnreachable("gpu-01", "no route"),
            "unreachable",
            "gpu-01 does not answer",
            id="dead",
        ),
        pytest.param(
            bare("gpu-01", "10.0.0.1"),
            "absent",
            f"its node is not there; {BACK}",
            id="absent",
        ),
        pytest.param(
            bare("gpu-01", "10.0.0.1", containers=(container("exited"),)),
            "stopped",
            f"its node is exited (0); {BACK}",
            id="stopped",
        ),
        pytest.param(
            bare("gpu-01", "10.0.0.1", containers=RUNNING),
            "starting",
            "its warden has not said anything yet",
            id="young",
        ),
        pytest.param(
            bare(
                "gpu-01",
                "10.0.0.1",
                containers=RUNNING,
                wardens={NODE: Warden(state="crash-loop", reason="5 failures in 15 min")},
            ),
            "crash-loop",
            f"5 failures in 15 min; {BACK}",
            id="given up",
        ),
        pytest.param(
            bare(
                "gpu-01",
                "10.0.0.1",
                containers=RUNNING,
                wardens={NODE: Warden(state="running")},
            ),
            "running",
            "",
            id="well",
        ),
    ],
)
def test_status_says_how_each_is_and_what_helps(host: object, state: str, why: str) -> None:
    known = known_on("vllm", FIRST, host)  # type: ignore[arg-type]  # the table's column is wide
    assert (known.state, known.why, known.host, known.cards) == (state, why, "gpu-01", "0")
