"""The wall clock may jump: it is written down, and nothing is decided by it."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.batch.test_batch_run import prompts, run, spec_of
from tests.batch.upstream import serving
from vllmdeploy.batch import rowcalls
from vllmdeploy.batch.limits import Pace
from vllmdeploy.batch.spec import Effort

HOUR_S = 3600.0


def test_a_clock_that_jumps_by_an_hour_to_and_fro_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts(tmp_path / "in.jsonl", 60)
    jumps = itertools.cycle((0.0, HOUR_S, -HOUR_S))
    jumping = SimpleNamespace(time=lambda: time.time() + next(jumps))
    monkeypatch.setattr(rowcalls, "time", jumping)
    with serving() as upstream:
        effort = Effort(timeout_s=5, rows_per_second=1000)
        finished = run(spec_of(tmp_path, upstream, effort=effort, order="input"))
        assert len(upstream.asked) == 60
    assert (finished.summary["ok"], finished.failed) == (60, 0)
    at = [
        json.loads(line)["run"]["at"] for line in finished.paths.results.read_bytes().splitlines()
    ]
    assert max(at) - min(at) > HOUR_S
    assert "</html>" in finished.paths.report.read_text(encoding="utf-8")


def test_a_pace_whose_clock_goes_back_waits_no_longer_for_it() -> None:
    pace = Pace(10.0)
    pace.debit(1000.0, 15)
    assert pace.wait(1000.0) == pytest.approx(0.5, abs=0.01)
    assert pace.wait(10.0) == pytest.approx(0.5, abs=0.01)
    assert pace.wait(10.6) == 0.0
