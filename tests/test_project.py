"""What the project's own files promise to each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from scripts.figures import figures, table

ROOT = Path(__file__).resolve().parents[1]


def test_the_changelog_begins_with_this_version() -> None:
    released = re.findall(r"^## \[([^]]+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version("vllmdeploy")


def test_each_version_stands_once_in_the_changelog() -> None:
    released = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(released) == len(set(released))


def test_ci_runs_what_people_run() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[-1] == "exec make test"


def test_help_names_every_target_that_people_may_call() -> None:
    shown = subprocess.run(
        ("make", "--no-print-directory", "help"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"^make (\S+)", shown, re.MULTILINE)) == {
        *phony[0].split(),
    } - {"help", "setup"}


def test_packages_are_listed_once_and_in_order() -> None:
    packages = (ROOT / "scripts/packages.txt").read_text().splitlines()[1:]
    assert packages == sorted(set(packages))


@pytest.mark.parametrize(
    ("ci", "status", "verdict"), [("", 0, "1 skipped"), ("true", 1, "1 error")]
)
def test_a_rig_that_cannot_run_is_skipped_by_people_and_fails_in_ci(
    ci: str, status: int, verdict: str
) -> None:
    run_one = (
        "import sys, pytest, tests.rig.rig as rig; rig.NEEDED = ('no-such-program',);"
        "sys.exit(pytest.main(['-q', 'tests/rig', '-k', 'mirror and noble']))"
    )
    done = subprocess.run(
        (sys.executable, "-c", run_one),
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    needs = "the rig needs no-such-program: run scripts/setup.sh"
    reason = needs if os.geteuid() == 0 else "the rig needs root"
    assert (done.returncode, verdict in done.stdout, reason in done.stdout) == (status, True, True)


def test_figures_are_drawn_as_one_table() -> None:
    records: list[dict[str, object]] = [
        {"id": "U1", "figure": "up / by hand", "value": 1.125, "target": 1.2, "pass": True, "n": 5},
        {"id": "R1", "figure": "failed", "value": 3, "target": 0, "pass": False, "seed": 7},
    ]
    assert table(records) == (
        "| id | figure       | value | target | pass | n | seed | seconds |\n"
        "|----|--------------|-------|--------|------|---|------|---------|\n"
        "| U1 | up / by hand | 1.12  | 1.2    | yes  | 5 |      |         |\n"
        "| R1 | failed       | 3     | 0      | NO   |   | 7    |         |"
    )


def test_lines_that_are_no_figures_are_passed_over() -> None:
    said = ("# policy  p99", '{"rows": 5}', '{"id": "B1", "figure": "rows/s", "value": 9}')
    assert figures(said) == [{"id": "B1", "figure": "rows/s", "value": 9}]
