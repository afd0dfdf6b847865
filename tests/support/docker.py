"""A `docker` of one's own, first on PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllmdeploy.effects.local import LocalShell


def fake_docker(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return LocalShell("here")
