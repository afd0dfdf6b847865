"""Bytes between two commands: whole and in order, or the error of the end that failed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from tests.support.sshd import require_sshd, sshd
from vllmdeploy.core.command import Command, script
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.effects.shell import Streaming
from vllmdeploy.effects.ssh import SshShell
from vllmdeploy.effects.transfer_pipe import through
from vllmdeploy.errors import CommandFailed

A, B = LocalShell("a"), LocalShell("b")


def moved(count: int) -> None:
    del count


def keep(path: Path) -> Command:
    return script('cat > "$1"', str(path))


def test_every_byte_arrives_in_order(tmp_path: Path) -> None:
    content = os.urandom(9_000_001)
    (tmp_path / "from").write_bytes(content)
    counts: list[int] = []
    give = Command(("cat", str(tmp_path / "from")))
    through(A, give, B, keep(tmp_path / "to"), on_moved=counts.append)
    assert (tmp_path / "to").read_bytes() == content
    assert counts == sorted(counts)
    assert counts[-1] == len(content)


def test_nothing_is_a_stream_too(tmp_path: Path) -> None:
    through(A, Command(("true",)), B, keep(tmp_path / "to"), on_moved=moved)
    assert (tmp_path / "to").read_bytes() == b""


def test_a_sender_that_fails_is_named_and_what_came_is_not_taken_for_all(tmp_path: Path) -> None:
    give = script("printf half; echo broken >&2; exit 3")
    take = script('cat > "$1" && : > "$1.whole"', str(tmp_path / "to"))
    with pytest.raises(CommandFailed, match=r"a: reading for another host: exit 3[^$]*broken"):
        through(A, give, B, take, on_moved=moved)
    assert not (tmp_path / "to.whole").exists()


def test_a_receiver_that_fails_is_named_and_the_sender_is_ended() -> None:
    take = script("echo full >&2; exit 4")
    with pytest.raises(CommandFailed, match=r"b: writing what another host sent: exit 4[^$]*full"):
        through(A, Command(("cat", "/dev/zero")), B, take, on_moved=moved)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    give = Command(("head", "-c", "1000000", "/dev/zero"))
    began = time.monotonic()
    through(A, give, B, keep(tmp_path / "to"), on_moved=moved, limit_bytes_s=2_000_000.0)
    assert time.monotonic() - began > 0.3
    assert (tmp_path / "to").stat().st_size == 1_000_000


def test_it_goes_through_ssh_both_ways(tmp_path: Path) -> None:
    require_sshd()
    content = os.urandom(5_000_000)
    (tmp_path / "from").write_bytes(content)
    give, take = Command(("cat", str(tmp_path / "from"))), keep(tmp_path / "to")
    with (
        sshd(tmp_path / "sshd") as server,
        connect([server.host()], server.settings()) as connected,
    ):
        shell = connected.shells["a"]
        assert isinstance(shell, SshShell)
        ends: list[tuple[Streaming, Streaming]] = [(shell, B), (A, shell), (shell, shell)]
        for source, target in ends:
            through(source, give, target, take, on_moved=moved)
            found = hashlib.sha256((tmp_path / "to").read_bytes()).hexdigest()
            assert found == hashlib.sha256(content).hexdigest()
            (tmp_path / "to").unlink()
