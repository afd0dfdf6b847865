"""What `status` says of services and of nodes that do not run."""

from __future__ import annotations

import pytest

from vllmdeploy.cli.status_text import services_text
from vllmdeploy.plan.observed import FoundNode
from vllmdeploy.workflows.status import FleetStatus, ServiceStatus


def test_a_service_shows_its_model_and_where_its_cards_are() -> None:
    plain = ServiceStatus(service="m", model="m", group="default", state="starting", why="loading")
    named = ServiceStatus(
        service="chat",
        model="Llama-3-8B",
        group="default",
        state="ready",
        tensor_parallel=8,
        placement={"gpu-01": 4, "gpu-02": 4},
        ready=1,
    )
    lines = services_text(FleetStatus(cluster="vllm", hosts=(), services=(plain, named)))
    unknown = ["-"] * 5
    chat = ["chat", "(Llama-3-8B)", "default", "8x1", "ready", "1/1"]
    assert [line.split() for line in lines.splitlines()[1:]] == [
        ["m", "default", "1x1", "starting", "0/1", *unknown, "0", "-", "loading"],
        [*chat, *unknown, "0", "gpu-01:4,gpu-02:4"],
    ]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("exited (137)", "it is exited (137); `vllmdeploy up` starts it"),
        ("restarting", "it ended, and is being started again"),
        ("activating", "it ended, and is being started again"),
    ],
)
def test_a_node_between_two_runs_is_not_told_to_be_started(state: str, words: str) -> None:
    node = FoundNode(name="n", id="n", role="ray-head", group="default", running=False, state=state)
    assert node.stopped == words
