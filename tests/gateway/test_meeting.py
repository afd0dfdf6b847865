"""The folders that killed gateways leave behind."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from vllmdeploy.gateway import meeting


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A path of a socket has room for a hundred bytes only, which pytest's folders can exceed.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", ".")
    return Path()


def made(*, listens: bool = False, age_s: float = 3600.0) -> tuple[Path, socket.socket]:
    folder = meeting.make()
    one = socket.socket(socket.AF_UNIX)
    one.bind(str(folder / meeting.SOCKET))
    if listens:
        one.listen()
    else:
        one.close()
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder, one


def test_folders_of_gateways_that_are_no_more_go(root: Path) -> None:
    killed, _ = made()
    alive, listening = made(listens=True)
    young, _ = made(age_s=0.0)
    other = root / "vllmdeploy-gateway-without-socket"
    other.mkdir()
    fresh = meeting.make()
    assert not killed.exists()
    assert {alive, young, other, fresh} <= set(root.iterdir())
    assert fresh.stat().st_mode & 0o777 == 0o700
    listening.close()
