from __future__ import annotations

import re
from pathlib import Path

from tests.plan.builders import bare, planned, wanted
from vllmdeploy.cli.output import step_line

README = Path(__file__).parents[1] / "README.md"


def test_the_plan_in_the_readme_is_the_plan() -> None:
    shown = re.search(r"```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    found = [bare("gpu-01", "10.0.0.1", head=True), bare("gpu-02", "10.0.0.2")]
    lines = [step_line(step) for step in planned(wanted(package="SHA"), found)]
    assert shown
    assert shown[1].splitlines() == lines
