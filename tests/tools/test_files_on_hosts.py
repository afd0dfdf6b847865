"""Files on a host, through a real shell in a folder of its own."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools import files

HERE = LocalShell("here")
HOSTILE = 'a b\'; touch ran; $(touch ran) `touch ran` "$HOME" -rf'


def run(command: Command) -> Result:
    result = HERE.run(command)
    assert result.ok, result.output
    return result


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 1000])
def test_a_file_arrives_whole_with_its_mode(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "new" / HOSTILE
    run(files.write(str(path), content, mode="0600"))
    assert path.read_bytes() == content
    assert mode(path) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [HOSTILE]


def test_a_strict_umask_locks_no_reader_out(tmp_path: Path) -> None:
    write = files.write(str(tmp_path / "pkg" / "sha" / "f"), b"x")
    strict = Command(("sh", "-c", 'umask 077; exec "$@"', "sh", *write.argv), stdin=write.stdin)
    run(strict)
    assert mode(tmp_path / "pkg" / "sha") == 0o755
    assert mode(tmp_path / "pkg" / "sha" / "f") == 0o644


def test_a_file_is_replaced_and_gets_the_new_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    run(files.write(str(path), b"old", mode="0600"))
    run(files.write(str(path), b"new"))
    assert (path.read_bytes(), mode(path)) == (b"new", 0o644)


def test_the_content_never_shows() -> None:
    command = files.write("/x", b"secret")
    assert "secret" not in str(command) + repr(command)


@pytest.mark.skipif(os.getuid() != 0, reason="only root hands files over")
def test_files_and_folders_are_handed_to_their_reader(tmp_path: Path) -> None:
    run(files.folders(str(tmp_path / "d"), mode="0700", owner="1234:4321"))
    run(files.write(str(tmp_path / "d" / "f"), b"x", mode="0600", owner="1234:4321"))
    for path in (tmp_path / "d", tmp_path / "d" / "f"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    assert (mode(tmp_path / "d"), mode(tmp_path / "d" / "f")) == (0o700, 0o600)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    result = HERE.run(files.write(str(path), b"new", owner="no-such-user:x"))
    assert result.status == 1
    assert path.read_bytes() == b"old"


def test_half_a_content_is_no_file(tmp_path: Path) -> None:
    """Who dies while it writes to a pipe closes it: its reader sees an end like any other."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    result = HERE.run(replace(files.write(str(path), b"new content"), stdin=b"new "))
    assert (result.status, result.stderr) == (1, "cut short on its way\n")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["f"]


def test_folders_are_made_once_and_again(tmp_path: Path) -> None:
    first, second = tmp_path / HOSTILE / "a", tmp_path / "-b"
    for _ in range(2):
        run(files.folders(str(first), str(second), mode="0750"))
    assert (mode(first), mode(second)) == (0o750, 0o750)


def test_files_are_read_appended_and_removed(tmp_path: Path) -> None:
    path = tmp_path / HOSTILE
    run(files.append_line(str(path), "one"))
    run(files.append_line(str(path), "two\n"))
    assert run(files.read(str(path))).stdout == "one\ntwo\n"
    run(files.remove(str(path), str(tmp_path / "not there")))
    assert list(tmp_path.iterdir()) == []


def test_digests_name_every_file_but_the_unfinished(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "sub" / "b c").write_bytes(b"2")
    (tmp_path / "a.new").write_bytes(b"half")
    fact = files.digests(str(tmp_path))
    assert fact.parse(run(fact.command)) == {
        "a": files.digest(b"1"),
        "sub/b c": files.digest(b"2"),
    }


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    digests, listing = files.digests(f"{tmp_path}/no"), files.listing(f"{tmp_path}/no")
    assert digests.parse(run(digests.command)) == {}
    assert listing.parse(run(listing.command)) == ()


def test_a_folders_names_are_listed(tmp_path: Path) -> None:
    for name in ("abc", "def"):
        (tmp_path / name).mkdir()
    fact = files.listing(str(tmp_path))
    assert fact.parse(run(fact.command)) == ("abc", "def")


def test_a_folder_without_its_file_is_told_from_one_that_has_it(tmp_path: Path) -> None:
    for name in ("abc", "def"):
        (tmp_path / name).mkdir()
    (tmp_path / "abc" / "package.zip").write_bytes(b"x")
    fact = files.holding(str(tmp_path), "package.zip")
    assert fact.parse(run(fact.command)) == ("abc", "def?")
    nowhere = files.holding(str(tmp_path / "no"), "package.zip")
    assert nowhere.parse(run(nowhere.command)) == ()


@given(st.text())
def test_no_text_ends_the_reading(text: str) -> None:
    files.digests("/x").parse(Result(0, text))
    files.listing("/x").parse(Result(0, text))
