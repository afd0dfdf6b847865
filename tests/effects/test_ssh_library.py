"""What is imported for SSH, and that nothing is missing when it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(program: str) -> str:
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_task_runner_comes_along_and_others_can_still_have_it() -> None:
    found = run(
        "import sys, vllmdeploy.effects.dial\n"
        "print('invoke' in sys.modules, 'unittest.mock' in sys.modules)\n"
        "import invoke\n"
        "print(callable(invoke.run))\n"
    )
    assert found.splitlines() == ["False False", "True"]


def test_match_exec_runs_its_program(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        'Match host gpu exec "exit 1"\n  Port 1\nMatch host gpu exec "true"\n  Port 2222\n', "utf-8"
    )
    found = run(
        "from pathlib import Path\n"
        "from vllmdeploy.effects.route import read_config\n"
        f"config = read_config(Path({str(config)!r}))\n"
        "print(config.lookup('gpu')['port'], config.lookup('other').get('port'))\n"
    )
    assert found.split() == ["2222", "None"]
