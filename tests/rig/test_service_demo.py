"""The demo, as `make demo` runs it: real answers, and nothing of it left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.rig.service_engine import need_engine
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT


def test_the_demo_answers_and_leaves_nothing(tmp_path: Path) -> None:
    need_engine()
    program = str(Path(sys.prefix, "bin/vllmdeploy"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(
        (program, "demo", "--exit"),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    for route in ("/generate", "/batch_generate", "/v1/chat/completions"):
        assert f"POST {route}" in done.stdout
    assert done.stdout.count("Paris") == 2
    assert "tokens/s" in done.stdout
    assert not Path(SYSTEM_STATE_ROOT, "demo").exists()
    listed = subprocess.run(("ps", "-eo", "args"), capture_output=True, text=True, check=True)
    assert f"{SYSTEM_STATE_ROOT}/demo/" not in listed.stdout
