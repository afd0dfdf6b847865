"""A `docker` of one's own, first on PATH."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vllmdeploy.effects.local import LocalShell


def fake_docker(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return LocalShell("here")


# Where `docker image inspect` has what.
_PLACES = {
    "id": ("Id",),
    "arch": ("Architecture",),
    "layers": ("RootFS", "Layers"),
    "user": ("Config", "User"),
    "environment": ("Config", "Env"),
    "labels": ("Config", "Labels"),
    "command": ("Config", "Cmd"),
    "entrypoint": ("Config", "Entrypoint"),
    "folder": ("Config", "WorkingDir"),
    "references": ("RepoTags",),
    "digests": ("RepoDigests",),
    "size": ("Size",),
}


def inspected(**said: Any) -> dict[str, Any]:
    """An image as `docker image inspect` shows it, with what is said of it and nothing else, which
    is how Docker shows one from 29 on."""
    shown: dict[str, Any] = {"Config": {}}
    for name, value in said.items():
        *folders, last = _PLACES[name]
        place = shown
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return shown
