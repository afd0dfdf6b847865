"""One line on the head for every run, written by a real shell."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command
from vllmdeploy.core.layout import Layout
from vllmdeploy.core.plan import Run, Step
from vllmdeploy.effects.audit import Tally, record
from vllmdeploy.effects.execute import Outcome, StepOutcome
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.errors import CommandFailed
from vllmdeploy.tools.access import Access

HERE = LocalShell("head")


def access(folder: Path) -> Access:
    return Access(Layout(str(folder)), "root", os.getuid(), False, False)


def outcome(kind: Outcome, error: CommandFailed | None = None) -> StepOutcome:
    return StepOutcome(Step("a", "do", "x", "asked", Run(Command(("x",)))), kind, 1.0, error)


def test_every_run_is_a_line_of_json_with_the_heads_time(tmp_path: Path) -> None:
    error = CommandFailed("a", "x", 1, 'it\'s "broken" %s \\n $(touch ran)\nlast')
    outcomes = (outcome(Outcome.DONE), outcome(Outcome.FAILED, error))
    record(HERE, access(tmp_path), "up", Tally.of_steps(outcomes))
    record(HERE, access(tmp_path), "worker $(touch ran) '%s'", None)
    first, second = map(json.loads, (tmp_path / "audit.log").read_text("utf-8").splitlines())
    assert first["at"].endswith("Z")
    assert (first["what"], first["done"], first["failed"], first["skipped"]) == ("up", 1, 1, 0)
    assert first["error"] == "a: exit 1: x"
    assert (second["what"], second["interrupted"]) == ("worker $(touch ran) '%s'", True)
    assert [one.name for one in tmp_path.iterdir()] == ["audit.log"]


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="writing the audit log"):
        record(HERE, access(tmp_path / "not there"), "up", Tally())
