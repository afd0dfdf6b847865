"""Whether this machine has an engine for real models: built in CI, elsewhere only used."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.rig import base

CANNOT = 3  # scripts/engine.sh: this machine cannot have vLLM for processors


def need_engine() -> None:
    if os.environ.get("CI") == "true":
        script = base.ENGINE.parent / "scripts/engine.sh"
        built = subprocess.run(("sh", script), capture_output=True, text=True, check=False)
        if built.returncode == CANNOT:
            pytest.skip(built.stderr.strip())
        assert built.returncode == 0, built.stderr
    elif not (base.ENGINE / "engine-stamp").exists():
        pytest.skip("there is no engine here: scripts/engine.sh makes it")
