"""One fleet for each file of rig tests: a fresh one takes under two seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest

pytest.register_assert_rewrite("tests.rig.look")

from tests.rig import claim  # noqa: E402
from tests.rig import rig as rigs  # noqa: E402
from tests.rig.rig import Rig  # noqa: E402

HERE = str(claim.WORKTREE / "tests/rig")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker("rig")


@pytest.fixture(scope="session", autouse=True)
def _rig_can_run() -> None:
    """Not being able to is a failure in CI, where nobody would notice what was skipped."""
    reason = rigs.reason_it_cannot_run()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest) -> Generator[Rig]:
    """The mixed fleet: head, a user with sudo, a host with two interfaces, one without rsync."""
    failed_before = request.session.testsfailed
    fleet = rigs.start()
    yield fleet
    if request.session.testsfailed > failed_before and os.environ.get("VLLMDEPLOY_RIG_KEEP") == "1":
        sys.stderr.write(f"\nrig kept:\n{fleet.how_to_enter()}\n")
        fleet.abandon()
    else:
        fleet.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fleet = getattr(item, "funcargs", {}).get("rig")
    if call.when == "call" and report.failed and isinstance(fleet, Rig):
        report.sections.append(("rig", f"what was on its hosts: {fleet.collect(item.name)}"))
    return report
