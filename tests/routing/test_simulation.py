from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllmdeploy.routing import policies

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "simulate_routing.py"


def simulate(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), "--instances", "8", "--requests", "1500", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_same_seed_gives_the_same_figures() -> None:
    one, two = simulate("--json"), simulate("--json")
    assert one == two
    assert {row["policy"] for row in json.loads(one)["policies"]} == (
        set(policies.names()) - {"load_balanced"}
    )


def test_looking_at_load_pays_where_instances_differ() -> None:
    rows = json.loads(simulate("--json", "--policy", "adaptive", "--policy", "random"))["policies"]
    adaptive, chance = rows
    assert adaptive["slo"] > chance["slo"]
    assert adaptive["first_token_p99_s"] < chance["first_token_p99_s"]
    assert adaptive["cache_hits"] > chance["cache_hits"]


def test_the_picture_shows_each_policy(tmp_path: Path) -> None:
    simulate("--svg", str(tmp_path / "a.svg"), "--policy", "weighted", "--policy", "adaptive")
    drawn = re.findall(r'text-anchor="end"[^>]*>(\w+)<', (tmp_path / "a.svg").read_text())
    assert drawn == ["weighted", "adaptive"]


@pytest.mark.parametrize("name", policies.names())
def test_the_documentation_names_each_policy(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "routing.md").read_text()


@pytest.mark.long
def test_the_table_in_the_documentation_is_that_of_a_run() -> None:
    run = [sys.executable, str(SCRIPT)]
    made = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert made.strip() in (ROOT / "docs" / "routing.md").read_text()
